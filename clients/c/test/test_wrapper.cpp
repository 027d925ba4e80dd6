// What the wrapper for C++ adds, against a broker: test_wrapper ENDPOINT. Prints what is not so.
#include "ister.hpp"

#include <iostream>

using namespace std::chrono_literals;

static int failures;

static void check(bool is_so, const char *what) {
    if (is_so) return;
    failures++;
    std::cerr << "not so: " << what << "\n";
}

static void an_exception_that_ends_a_consumer_is_a_failure_of_what_it_has_in_hand(ister::client &client) {
    ister::detail::owned<ister_map, ister_map_free> once(ister_map_new());
    ister_map_number(once.get(), "max_deliveries", 1);
    ister_consumer_options options{};
    options.start.kind = ISTER_EARLIEST;
    options.options = once.get();
    try {
        auto consumer = client.consumer("wrapped/*", "all", 20s, options);
        check(consumer.topics() == std::vector<std::string>{"wrapped/one"}, "it knows its topics");
        auto message = consumer.receive(20s);
        throw std::runtime_error("boom");
    } catch (const std::runtime_error &) { // as a program would that goes on
    }
    std::vector<ister::dead_letter> letters;
    for (int i = 0; i < 1000 && letters.empty(); i++) letters = client.dead_letters("wrapped/one", "all", 20s);
    check(letters.size() == 1, "there is a letter");
    if (letters.empty()) return;
    check(letters[0].payload() == "x" && letters[0].why().offset == 0, "it is the message");
    check(std::string(letters[0].why().reason) == "an exception ended its consumer", "and says why");
    check(client.redrive("wrapped/one", "all", 20s) == 1, "it is sent back");
    auto consumer = client.consumer("wrapped/one", "all", 20s);
    auto message = consumer.receive(20s);
    check(message.attribute("ister.redriven_for") == "all", "it comes again");
    consumer.ack(message);
    consumer.close(20s);
    check(client.dead_letters("wrapped/one", "all", 20s).empty(), "no letter is left");
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    try {
        ister::client client({arguments[1]}, 20s);
        client.create_topic("wrapped/one", nullptr, 20s);
        client.producer("wrapped/one", 20s).send({"x"}).wait(20s);
        an_exception_that_ends_a_consumer_is_a_failure_of_what_it_has_in_hand(client);
        client.close(20s);
    } catch (const std::exception &error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return failures;
}
