"""Tasks of the Directory, as the messages by which a topic or subscription of this worker carries them out. Pure."""

from __future__ import annotations

from ister.actors.messages import (
    WITH_TOPIC,
    AskFenced,
    Delete,
    Describe,
    Explain,
    Repair,
    Seek,
    StartSubscription,
    SubscriptionTask,
    TopicTask,
    Unblock,
    Update,
    UpdateSubscription,
    Verify,
)


def message_to_topic(task: TopicTask) -> object:
    """Return what the topic of a task is told."""
    if task.task == "update":
        return Update(task.topic, task.reply, task.ticket)
    if task.task == "verify":
        return Verify(task.reply, task.ticket, task.number)
    kinds = {
        "describe": Describe,
        "repair": Repair,
        "ask-fenced": AskFenced,
        "delete": Delete,
    }
    return kinds[task.task](task.reply, task.ticket)


def message_to_subscription(task: SubscriptionTask) -> object:
    """Return what the subscription of a task is told."""
    match task.task:
        case "update":
            return UpdateSubscription(task.subscription, task.reply, task.ticket)
        case "seek":
            return Seek(task.argument, task.reply, task.ticket)
        case "unblock":
            return Unblock(task.argument, task.reply, task.ticket)
        case "delete":
            return Delete(task.reply, task.ticket, task.argument == WITH_TOPIC)
        case _:
            kinds = {"start": StartSubscription, "describe": Describe, "explain": Explain}
            return kinds[task.task](task.reply, task.ticket)
