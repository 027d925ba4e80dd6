# The driver of the Perl client; tests/conformance_clients/DRIVER.md says how one works.
use v5.20;
use warnings;
use FindBin;
use JSON::XS;
use List::Util qw(max);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);
use ZMQ::FFI qw(ZMQ_RCVTIMEO);
BEGIN { require "$FindBin::Bin/minimal.pl" }

use constant {CREDIT_MESSAGES => 1000, CREDIT_BYTES => 1 << 20};
my (%clients, %handles, %receipts);
my $json = JSON::XS->new->utf8->canonical;

sub patient {
    my ($connection, $timeout_ms) = @_;
    $connection->{socket}->set(ZMQ_RCVTIMEO, 'int', max(0, int $timeout_ms));
    return $connection;
}

# A producer or consumer has a connection of its own, for the client reads one answer at a time.
sub handle {
    my ($given, %header) = @_;
    my $connection = patient(Minimal->new($clients{$given->{client}}{endpoint}), $given->{timeout_ms});
    my ($there, $answer) = $connection->opened({1 => 1, 2 => 1, %header});
    return {there => $there, answer => $answer, sequence => $answer->{5} // 0, waiting => []};
}

sub take {
    my ($handle, $timeout_ms) = @_;
    my ($header, $lengths, $payloads) = patient($handle->{there}, $timeout_ms)->receive(Minimal::DELIVER);
    $handle->{there}->send(
        {0 => Minimal::CREDIT, 2 => 1, 11 => $header->{7}, 12 => length($lengths) + length $payloads});
    my ($at, $offset) = (0, $header->{6});
    for my $length (unpack 'V*', $lengths) {
        my $payload = unpack 'H*', substr $payloads, $at, $length;
        push @{$handle->{waiting}}, {offset => $offset++, payload => $payload, attempt => $header->{10} // 1};
        $at += $length;
    }
    return;
}

my %commands = (
    hello => sub {
        return {protocol => 1, language => 'perl-minimal', client => 'perl-minimal', capabilities => ['attempts', 'moved']};
    },
    connect => sub {
        my ($given) = @_;
        my $endpoint = $given->{endpoints}[0];
        $clients{$given->{client}} = {endpoint => $endpoint, there => patient(Minimal->new($endpoint), $given->{timeout_ms})};
        return {};
    },
    admin => sub {
        my ($given) = @_;
        my $connection = patient($clients{$given->{client}}{there}, $given->{timeout_ms});
        my %arguments = (dispatch => 'reliable', %{$given->{arguments}});
        $connection->send({0 => Minimal::REQUEST, 1 => 1, 30 => $given->{operation}, 24 => \%arguments});
        my ($header) = $connection->receive(Minimal::RESULT);
        die "$header->{16}: $header->{17} ($header->{18})\n" if $header->{0} != Minimal::RESULT;
        return {result => {topic => $arguments{topic}, strategy => $arguments{dispatch}, durability => ''}};
    },
    producer => sub {
        my ($given) = @_;
        my %header = (0 => Minimal::OPEN_PRODUCER, 3 => $given->{topic}, 25 => 1 + int rand 2**52);
        my $handle = $handles{$given->{producer}} = handle($given, %header);
        return {next_sequence => $handle->{sequence}};
    },
    publish => sub {
        my ($given) = @_;
        my $handle = $handles{$given->{producer}};
        my %header = (0 => Minimal::PUBLISH, 2 => 1, 5 => $handle->{sequence});
        my $payload = pack 'H*', $given->{message}{payload};
        my $told = patient($handle->{there}, $given->{timeout_ms})->ask(\%header, [Minimal::RECEIPT], $payload);
        $handle->{sequence}++;
        $receipts{$given->{receipt}} = $told->{27}[1];
        return {};
    },
    receipt => sub {    # `publish` has waited
        my ($given) = @_;
        return {offset => delete $receipts{$given->{receipt}}, count => 1, duplicate => undef};
    },
    consumer => sub {
        my ($given) = @_;
        my $start = $given->{start} // 'latest';
        $start += 0 if $start =~ /^\d+$/;
        my %where = (3 => $given->{topic}, 4 => $given->{subscription}, 28 => $given->{type}, 26 => $start);
        my %credit = (11 => CREDIT_MESSAGES, 12 => CREDIT_BYTES);
        my $handle = $handles{$given->{consumer}} = handle($given, 0 => Minimal::OPEN_CONSUMER, %where, %credit);
        return {position => $handle->{answer}{6}};
    },
    receive => sub {
        my ($given) = @_;
        my ($handle, $most) = ($handles{$given->{consumer}}, $given->{max} // 1);
        my $till = clock_gettime(CLOCK_MONOTONIC) + $given->{timeout_ms} / 1000;
        eval {
            take($handle, ($till - clock_gettime(CLOCK_MONOTONIC)) * 1000) while @{$handle->{waiting}} < $most;
            1;
        } or do { die $@ if !is_silence($@) };
        return {messages => [splice @{$handle->{waiting}}, 0, $most]};
    },
    ack => sub {
        my ($given) = @_;
        $handles{$given->{consumer}}{there}->send({0 => Minimal::ACK, 2 => 1, 13 => [$_, $_ + 1]}) for @{$given->{offsets}};
        return {};
    },
    close => sub {
        my ($given) = @_;
        my $connection;
        if (defined $given->{client}) {
            $connection = delete($clients{$given->{client}})->{there};
        }
        else {
            $connection = delete($handles{$given->{producer} // $given->{consumer}})->{there};
            patient($connection, $given->{timeout_ms})->ask({0 => Minimal::CLOSE, 1 => 2, 2 => 1}, [Minimal::DONE]);
        }
        $connection->send({0 => Minimal::BYE});
        $connection->{socket}->close;
        return {};
    },
);

sub is_silence { my ($error) = @_; return $error =~ /temporarily unavailable/i }

sub answer {
    my ($line) = @_;
    my $given = $json->decode($line);
    $given->{timeout_ms} //= 10_000;
    my $told = eval {
        my $command = $commands{$given->{do}} or die "unsupported: this driver does not know $given->{do} (fix)\n";
        $command->($given);
    };
    return {id => $given->{id}, ok => $told} if $told;
    my $why = $@;
    my ($code, $text, $action) = $why =~ /\A([a-z-]+): (.*) \((\w+)\)\n\z/s;
    ($code, $text, $action) = ('timeout', 'no answer in time', 'retry') if is_silence($why);
    ($code, $text, $action) = ('driver-failed', $why, 'stop') if !$code;
    return {id => $given->{id}, error => {code => $code, text => $text, action => $action}};
}

$| = 1;
while (my $line = <STDIN>) {
    say $json->encode(answer($line));
}
$_->{there}->send({0 => Minimal::BYE}) for values %handles;
