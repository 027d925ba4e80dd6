// ister.hpp - the C client for C++17: handles that free themselves, exceptions, time-outs of std::chrono.
// Header only; ister.h says what each call does. Link with the C library.
#ifndef ISTER_HPP
#define ISTER_HPP

#include "ister.h"

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ister {

using milliseconds = std::chrono::milliseconds;
constexpr milliseconds for_ever{-1};

// What a broker answered, or what happened on this side. code() is stable.
class error : public std::runtime_error {
  public:
    explicit error(const ister_error &told)
        : std::runtime_error(std::string(told.code) + ": " + told.text), told_(told) {}
    ister_result result() const noexcept { return told_.result; }
    ister_action action() const noexcept { return told_.action; }
    std::string_view code() const noexcept { return told_.code; }

  private:
    ister_error told_;
};

namespace detail {
inline void check(ister_result result, const ister_error &told) {
    if (result != ISTER_OK) throw error(told);
}
template <typename T, void (*Free)(T *)> struct freer {
    void operator()(T *old) const noexcept { Free(old); }
};
template <typename T, void (*Free)(T *)> using owned = std::unique_ptr<T, freer<T, Free>>;
} // namespace detail

// A message to be sent: views, which must live until the call returns.
struct outgoing {
    std::string_view payload;
    std::string_view key{};
    std::vector<std::pair<std::string, std::string>> attributes{};
    std::int64_t deliver_at_ms = 0;

    // The C form of it, for as long as both live.
    ister_outgoing raw(std::vector<ister_attribute> &room) const {
        room.clear();
        for (const auto &[name, value] : attributes)
            room.push_back({name.c_str(), value.c_str(), name.size(), value.size()});
        ister_outgoing made{};
        made.payload = payload.data();
        made.payload_size = payload.size();
        made.key = key.data();
        made.key_size = key.size();
        made.attributes = room.data();
        made.attributes_count = room.size();
        made.deliver_at_ms = deliver_at_ms;
        return made;
    }
};

// A message as it was delivered.
class message {
  public:
    explicit message(ister_message *of) : it_(of) {}
    std::string_view payload() const noexcept { return {static_cast<const char *>(it_->payload), it_->payload_size}; }
    std::string_view key() const noexcept { return {static_cast<const char *>(it_->key), it_->key_size}; }
    std::string_view topic() const noexcept { return it_->topic; }
    std::uint64_t offset() const noexcept { return it_->offset; }
    unsigned attempt() const noexcept { return it_->attempt; }
    std::chrono::system_clock::time_point timestamp() const {
        return std::chrono::system_clock::time_point(milliseconds(it_->timestamp_ms));
    }
    // Empty where there is none.
    std::string_view attribute(const char *name) const noexcept {
        ister_attribute found;
        if (!ister_message_attribute(it_.get(), name, &found)) return {};
        return {found.value, found.value_size};
    }
    ister_message *get() const noexcept { return it_.get(); }

  private:
    detail::owned<ister_message, ister_message_free> it_;
};

class receipt {
  public:
    explicit receipt(ister_receipt *of) : it_(of) {}
    bool poll() const { return ister_receipt_poll(it_.get()); }
    ister_published wait(milliseconds timeout = for_ever) const {
        ister_error told;
        ister_published published;
        detail::check(ister_receipt_wait(it_.get(), timeout.count(), &published, &told), told);
        return published;
    }

  private:
    detail::owned<ister_receipt, ister_receipt_free> it_;
};

class producer {
  public:
    explicit producer(ister_producer *of) : it_(of) {}
    receipt send(const outgoing &what, milliseconds timeout = for_ever) {
        std::vector<ister_attribute> room;
        ister_outgoing raw = what.raw(room);
        ister_error told;
        ister_receipt *made = nullptr;
        detail::check(ister_producer_send(it_.get(), &raw, timeout.count(), &made, &told), told);
        return receipt(made);
    }
    receipt send_batch(const std::vector<outgoing> &what, milliseconds timeout = for_ever) {
        std::vector<std::vector<ister_attribute>> rooms(what.size());
        std::vector<ister_outgoing> raw;
        raw.reserve(what.size());
        for (std::size_t i = 0; i < what.size(); i++) raw.push_back(what[i].raw(rooms[i]));
        ister_error told;
        ister_receipt *made = nullptr;
        detail::check(ister_producer_send_batch(it_.get(), raw.data(), raw.size(), timeout.count(), &made, &told),
                      told);
        return receipt(made);
    }
    void flush(milliseconds timeout = for_ever) {
        ister_error told;
        detail::check(ister_producer_flush(it_.get(), timeout.count(), &told), told);
    }
    void close(milliseconds timeout = for_ever) {
        ister_error told;
        detail::check(ister_producer_close(it_.get(), timeout.count(), &told), told);
    }
    std::uint64_t next_sequence() const { return ister_producer_next_sequence(it_.get()); }
    ister_producer *get() const noexcept { return it_.get(); }

  private:
    detail::owned<ister_producer, ister_producer_free> it_;
};

// A consumer or a reader. One that is destroyed by an exception says that its program failed at what it has in hand.
class consumer {
  public:
    explicit consumer(ister_consumer *of) : it_(of) {}
    consumer(consumer &&) = default;
    consumer &operator=(consumer &&) = default;
    ~consumer() {
        if (it_ && std::uncaught_exceptions() > exceptions_)
            ister_consumer_blame(it_.get(), "an exception ended its consumer", nullptr);
    }
    // Of a pattern; of one topic that alone.
    std::vector<std::string> topics() const {
        std::vector<std::string> found;
        const detail::owned<ister_value, ister_value_free> told(ister_consumer_topics(it_.get()));
        for (std::size_t i = 0; i < ister_value_count(told.get()); i++)
            found.emplace_back(ister_value_text(ister_value_at(told.get(), i), nullptr));
        return found;
    }
    message receive(milliseconds timeout = for_ever) {
        ister_error told;
        ister_message *came = nullptr;
        detail::check(ister_consumer_receive(it_.get(), timeout.count(), &came, &told), told);
        return message(came);
    }
    std::vector<message> receive_batch(std::size_t most, milliseconds timeout = for_ever) {
        ister_error told;
        std::vector<ister_message *> raw(most);
        std::size_t count = 0;
        detail::check(ister_consumer_receive_batch(it_.get(), most, timeout.count(), raw.data(), &count, &told), told);
        return std::vector<message>(raw.begin(), raw.begin() + static_cast<std::ptrdiff_t>(count));
    }
    void ack(const message &of) {
        ister_error told;
        ister_message *raw = of.get();
        detail::check(ister_consumer_ack(it_.get(), &raw, 1, &told), told);
    }
    void ack(const std::vector<message> &of) {
        ister_error told;
        std::vector<ister_message *> raw;
        raw.reserve(of.size());
        for (const auto &each : of) raw.push_back(each.get());
        detail::check(ister_consumer_ack(it_.get(), raw.data(), raw.size(), &told), told);
    }
    void ack_until(const message &of) {
        ister_error told;
        detail::check(ister_consumer_ack_until(it_.get(), of.get(), &told), told);
    }
    // delay: for_ever is the subscription's back-off.
    void nack(const message &of, milliseconds delay = for_ever, const std::string &reason = {}) {
        ister_error told;
        ister_message *raw = of.get();
        detail::check(ister_consumer_nack(it_.get(), &raw, 1, delay.count(), reason.c_str(), &told), told);
    }
    void extend(const message &of) {
        ister_error told;
        ister_message *raw = of.get();
        detail::check(ister_consumer_extend(it_.get(), &raw, 1, &told), told);
    }
    std::uint64_t seek(ister_place to, milliseconds timeout = for_ever) {
        ister_error told;
        std::uint64_t position = 0;
        detail::check(ister_consumer_seek(it_.get(), to, timeout.count(), &position, &told), told);
        return position;
    }
    void flush(milliseconds timeout = for_ever) {
        ister_error told;
        detail::check(ister_consumer_flush(it_.get(), timeout.count(), &told), told);
    }
    void close(milliseconds timeout = for_ever) {
        ister_error told;
        detail::check(ister_consumer_close(it_.get(), timeout.count(), &told), told);
    }
    // The program failed at what it has in hand.
    void blame(const std::string &reason) {
        ister_error told;
        detail::check(ister_consumer_blame(it_.get(), reason.c_str(), &told), told);
    }
    ister_consumer *get() const noexcept { return it_.get(); }

  private:
    detail::owned<ister_consumer, ister_consumer_free> it_;
    int exceptions_ = std::uncaught_exceptions();
};

// A message that a subscription gave up, and why.
class dead_letter : public message {
  public:
    explicit dead_letter(ister_message *of) : message(of) { ister_dead_letter_read(of, &told_); }
    const ister_dead_letter &why() const noexcept { return told_; }

  private:
    ister_dead_letter told_;
};

class client {
  public:
    client(const std::vector<std::string> &endpoints, milliseconds timeout,
           const ister_client_options &options = ister_client_options{}) {
        std::vector<const char *> raw;
        raw.reserve(endpoints.size());
        for (const auto &each : endpoints) raw.push_back(each.c_str());
        ister_error told;
        ister_client *made = nullptr;
        detail::check(ister_connect(raw.data(), raw.size(), &options, timeout.count(), &made, &told), told);
        it_.reset(made);
    }
    // options: of topic.create, may be null; see ister_map_new().
    void create_topic(const std::string &topic, const ister_map *options, milliseconds timeout) {
        ister_error told;
        detail::check(ister_topic_create(it_.get(), topic.c_str(), options, timeout.count(), nullptr, &told), told);
    }
    ister::producer producer(const std::string &topic, milliseconds timeout,
                             const ister_producer_options &options = ister_producer_options{}) {
        ister_error told;
        ister_producer *made = nullptr;
        detail::check(ister_producer_open(it_.get(), topic.c_str(), &options, timeout.count(), &made, &told), told);
        return ister::producer(made);
    }
    ister::consumer consumer(const std::string &topic, const std::string &subscription, milliseconds timeout,
                             const ister_consumer_options &options = ister_consumer_options{}) {
        ister_error told;
        ister_consumer *made = nullptr;
        detail::check(ister_consumer_open(it_.get(), topic.c_str(), subscription.c_str(), &options, timeout.count(),
                                          &made, &told),
                      told);
        return ister::consumer(made);
    }
    ister::consumer reader(const std::string &topic, ister_place start, milliseconds timeout) {
        ister_error told;
        ister_consumer *made = nullptr;
        detail::check(ister_reader_open(it_.get(), topic.c_str(), start, 0, timeout.count(), &made, &told), told);
        return ister::consumer(made);
    }
    message request(const std::string &topic, const outgoing &what, milliseconds timeout) {
        std::vector<ister_attribute> room;
        ister_outgoing raw = what.raw(room);
        ister_error told;
        ister_message *reply = nullptr;
        detail::check(ister_request(it_.get(), topic.c_str(), &raw, timeout.count(), &reply, &told), told);
        return message(reply);
    }
    void reply(const message &to, const outgoing &what, milliseconds timeout) {
        std::vector<ister_attribute> room;
        ister_outgoing raw = what.raw(room);
        ister_error told;
        detail::check(ister_reply(it_.get(), to.get(), &raw, timeout.count(), &told), told);
    }
    // Those that wait, oldest first, behind an offset; none is the end.
    std::vector<dead_letter> dead_letters(const std::string &topic, const std::string &subscription,
                                          milliseconds timeout, std::int64_t after = -1, std::size_t most = 100) {
        ister_error told;
        std::vector<ister_message *> raw(most);
        std::size_t count = 0;
        detail::check(ister_dead_letters_list(it_.get(), topic.c_str(), subscription.c_str(), after, most,
                                              timeout.count(), raw.data(), &count, &told),
                      told);
        return std::vector<dead_letter>(raw.begin(), raw.begin() + static_cast<std::ptrdiff_t>(count));
    }
    std::uint64_t redrive(const std::string &topic, const std::string &subscription, milliseconds timeout,
                          const ister_redrive_options &options = ister_redrive_options{}) {
        ister_error told;
        std::uint64_t count = 0;
        detail::check(ister_dead_letters_redrive(it_.get(), topic.c_str(), subscription.c_str(), &options,
                                                 timeout.count(), &count, &told),
                      told);
        return count;
    }
    void interrupt() { ister_client_interrupt(it_.get()); }
    // Without it the destructor leaves at once.
    void close(milliseconds timeout) {
        ister_error told;
        detail::check(ister_client_close(it_.get(), timeout.count(), &told), told);
    }
    ister_client *get() const noexcept { return it_.get(); }

  private:
    detail::owned<ister_client, ister_client_free> it_;
};

} // namespace ister

#endif
