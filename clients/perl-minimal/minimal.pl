# The smallest client of Ister, from transport/PROTOCOL.md: perl minimal.pl tcp://HOST:PORT TOPIC MESSAGE...
package Minimal;
use v5.20;
use warnings;
use CBOR::XS;
use ZMQ::FFI qw(ZMQ_DEALER ZMQ_LINGER ZMQ_RCVTIMEO);

use constant {
    HELLO => 1, BYE => 2, OPEN_PRODUCER => 4, PUBLISH => 5, CLOSE => 6, OPEN_CONSUMER => 7, CREDIT => 8, ACK => 9,
    REQUEST => 12, WELCOME => 33, OPENED => 34, RECEIPT => 35, DELIVER => 36, ERROR => 37, MOVED => 38, RESULT => 39,
    DONE => 40,
};
my $context = ZMQ::FFI->new;

my $cbor = CBOR::XS->new->text_keys->text_strings;    # else they are byte strings, which the broker refuses

# The keys of a Perl hash are strings, and those of a header integers: its map is written here.
sub header {
    my (%header) = @_;
    return chr(0xa0 + keys %header) . join '', map { $cbor->encode($_ + 0) . $cbor->encode($header{$_}) } sort keys %header;
}

sub new {
    my ($class, $endpoint) = @_;
    my $self = bless {socket => $context->socket(ZMQ_DEALER)}, $class;
    $self->{socket}->set(ZMQ_LINGER, 'int', 1_000);    # it is 0 here: the last frames would be lost
    $self->{socket}->set(ZMQ_RCVTIMEO, 'int', 10_000);
    $self->{socket}->connect($endpoint);
    $self->ask({0 => HELLO, 22 => [1]}, [WELCOME]);
    return $self;
}

sub send {
    my ($self, $header, @body) = @_;
    return $self->{socket}->send_multipart([header(%$header), @body]);
}

sub receive {
    my ($self, @wanted) = @_;
    while (1) {
        my ($first, @body) = $self->{socket}->recv_multipart;
        my $header = $cbor->decode($first);
        return ($header, @body) if grep { $_ == $header->{0} } @wanted;
        next if $header->{0} != ERROR;
        return ($header, @body) if $header->{16} eq 'topic-exists';
        die "$header->{16}: $header->{17} ($header->{18})\n";
    }
}

sub ask {
    my ($self, $header, $wanted, @body) = @_;
    $self->send($header, @body);
    return ($self->receive(@$wanted))[0];
}

sub opened {
    my ($self, $header) = @_;
    my $answer = $self->ask($header, [OPENED, MOVED]);
    return $answer->{0} == MOVED ? opened(Minimal->new($answer->{19}), $header) : ($self, $answer);
}

sub main {
    my ($endpoint, $topic, @messages) = @_;
    my $client = Minimal->new($endpoint);
    my %arguments = (topic => $topic, dispatch => 'reliable');
    $client->ask({0 => REQUEST, 1 => 1, 30 => 'topic.create', 24 => \%arguments}, [RESULT]);
    my ($there, $answer) = $client->opened({0 => OPEN_PRODUCER, 1 => 2, 2 => 1, 3 => $topic, 25 => 1 + int rand 2**52});
    my $sequence = $answer->{5};
    for my $message (@messages) {
        my $receipt = $there->ask({0 => PUBLISH, 2 => 1, 5 => $sequence++}, [RECEIPT], $message);
        say "published at offset $receipt->{27}[1]";
    }
    my %subscription = (3 => $topic, 4 => 'minimal', 28 => 'shared', 26 => 'earliest');
    ($there) = $client->opened({0 => OPEN_CONSUMER, 1 => 3, 2 => 2, %subscription, 11 => 1000, 12 => 1 << 20});
    while (@messages) {
        my ($header, $lengths, $payloads) = $there->receive(DELIVER);
        $there->send({0 => CREDIT, 2 => 2, 11 => $header->{7}, 12 => length($lengths) + length $payloads});
        my $offset = $header->{6};
        for my $length (unpack 'V*', $lengths) {
            say 'received ', $offset++, ' ', substr $payloads, 0, $length, '';
            shift @messages;
        }
        $there->send({0 => ACK, 2 => 2, 13 => [$header->{6}, $offset]});
    }
    $there->ask({0 => CLOSE, 1 => 4, 2 => 2}, [DONE]);    # answered once the acknowledgments before it are applied
    $there->send({0 => BYE});
    return;
}

main(@ARGV) unless caller;
1;
