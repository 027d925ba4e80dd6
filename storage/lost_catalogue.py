"""A catalogue that is missing, empty, old or damaged: restores entries from the files beside logs and cursors.

- A name with a log or cursors is never taken for new: if nothing describes them, the broker does not start until an
  operator decides.
- A restored entry has the settings of its creation or last change. Existing entries of the catalogue stay as they
  are, unless a description has a later change than the catalogue's last: then the catalogue is an old copy.

May touch: the Disk it is handed; the catalogue's files, and folders of logs and cursors, which it only renames.
"""

from __future__ import annotations

import logging
from typing import Final

from ister.errors import DamagedError, StorageError
from ister.storage.about import TOPIC_ABOUT, Abouts
from ister.storage.catalogue import Catalogue
from ister.storage.disk import Disk
from ister.storage.folders import CURSORS_FOLDER, TOPICS_FOLDER, folder_of
from ister.storage.meta import SubscriptionMeta, TopicMeta

log = logging.getLogger("ister.catalogue")

REBUILD_FLAG: Final = "--rebuild-catalogue"
SHOWN_MAX: Final = 5


def open_catalogue(disk: Disk, data: str, path: str, *, rebuild: bool = False) -> tuple[Catalogue, list[str]]:
    """Open the catalogue at `path` and restore missing entries; return it, and a line for each thing done.

    Raises DamagedError for a damaged catalogue, and StorageError `catalogue-lost` if there are logs or cursors that
    neither the catalogue nor a description knows. With `rebuild` both are set aside, and the catalogue is rebuilt.
    """
    abouts = Abouts(disk, data)
    told: list[str] = []
    try:
        catalogue = Catalogue(path, abouts)
    except DamagedError as error:
        if not rebuild:
            raise DamagedError(
                f"{error.text}. Put a copy of it back; or rebuild it from the descriptions beside logs and cursors: "
                f"ister serve {REBUILD_FLAG}"
            ) from error
        told.append(f"the catalogue was damaged, and is kept as {_set_aside_catalogue(disk, path)}")
        catalogue = Catalogue(path, abouts)
    try:
        was_empty, was_used = not catalogue.topics(), catalogue.change() > 0
        told += bring_back(catalogue, abouts)
        if was_empty:
            told += _undescribed(disk, data, catalogue, abouts, was_used=was_used, rebuild=rebuild)
    except BaseException:
        catalogue.close()
        raise
    for line in told:
        log.warning("%s", line)
    return catalogue, told


def _set_aside_catalogue(disk: Disk, path: str) -> str:
    number = 0
    while disk.exists(kept := f"{path}.damaged-{number}"):
        number += 1
    for ending in (
        "-wal",
        "-shm",
        "",
    ):  # the catalogue file itself last: without it nothing would show that it was damaged
        if disk.exists(f"{path}{ending}"):
            disk.rename(f"{path}{ending}", f"{kept}{ending}")
    disk.sync_folder(path.rpartition("/")[0])
    return kept


def bring_back(catalogue: Catalogue, abouts: Abouts) -> list[str]:
    """Enter described things that the catalogue lacks, and describe undescribed ones; return a line for each."""
    described = abouts.read()
    for path in described.unreadable:
        log.error("%s does not match its checksum, and is ignored", path)
    deleted = {topic.incarnation for topic in catalogue.erasing()}
    last = catalogue.change()
    came: dict[str, int] = {}
    set_again: set[str] = set()
    by_folder: dict[str, TopicMeta] = {}
    for fields, change in zip(described.topics, described.topic_changes, strict=True):
        topic = _topic(fields)
        if topic is None or topic.incarnation in deleted:
            continue
        known = catalogue.topic(topic.name)
        if known is not None and known.incarnation != topic.incarnation:
            if change <= last or topic.created_ms <= known.created_ms:
                log.error(
                    "the catalogue has another topic %s than %s: the log there is kept",
                    topic.name,
                    folder_of(topic),
                )
                continue
            # deleted before the present one was created, which the old copy does not know
            catalogue.delete_topic(topic.name)
            known = None
        if known is None:
            catalogue.create_topic(topic)
            came[topic.name] = 0
        elif change > last and known.settings != topic.settings:
            catalogue.update_topic(topic.name, topic.settings)
            set_again.add(topic.name)
        by_folder[folder_of(topic)] = topic
    for (folder, fields), change in zip(described.subscriptions, described.subscription_changes, strict=True):
        subscription, of = _subscription(fields), by_folder.get(folder)
        if subscription is None or of is None or subscription.topic != of.name:
            continue
        there = catalogue.subscription(of.name, subscription.name)
        if there is not None and change > last and there.created_ms < subscription.created_ms:
            catalogue.delete_subscription(of.name, subscription.name)
            there = None
        if there is None:
            catalogue.create_subscription(subscription)
            came[of.name] = came.get(of.name, 0) + 1
        elif change > last and there.settings != subscription.settings:
            catalogue.update_subscription(of.name, subscription.name, subscription.settings)
            set_again.add(of.name)
    if catalogue.topics():  # an empty catalogue is as good as a new one, and proves nothing
        catalogue.go_on_from(max((last, *described.topic_changes, *described.subscription_changes)))
    catalogue.describe_all()
    return [
        f"topic {name}: the catalogue lacked it, or subscriptions of it; back from beside its log with {count} of these"
        for name, count in sorted(came.items())
    ] + [
        f"topic {name}: the catalogue is an older copy than what lies beside its log, of which the settings are back"
        for name in sorted(set_again)
    ]


def _topic(fields: dict[str, object]) -> TopicMeta | None:
    try:
        incarnation = bytes.fromhex(str(fields["incarnation"]))
        return TopicMeta(**(fields | {"incarnation": incarnation}))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError):
        return None


def _subscription(fields: dict[str, object]) -> SubscriptionMeta | None:
    try:
        return SubscriptionMeta(**fields)  # type: ignore[arg-type]
    except TypeError:
        return None


def _undescribed(
    disk: Disk, data: str, catalogue: Catalogue, abouts: Abouts, *, was_used: bool, rebuild: bool
) -> list[str]:
    """Refuse to start beside logs and cursors that nothing describes, or set them aside with `rebuild`.

    `was_used`: the catalogue is empty because everything was deleted; then files without a description are remains of
    that.
    """
    subscriptions = {
        f"{CURSORS_FOLDER}/{folder_of(topic)}/{name}"
        for topic in catalogue.topics()
        for name in catalogue.cursor_names(topic)
    }
    known = {f"{TOPICS_FOLDER}/{folder_of(topic)}" for topic in catalogue.topics()}
    deleted = {folder_of(topic) for topic in catalogue.erasing()}  # topics whose deletion was not finished
    stray = [
        path
        for path in abouts.logs_and_cursors()
        if path not in subscriptions
        and path.rpartition("/")[0] not in known
        and path.split("/")[1] not in deleted
        and not (was_used and not disk.exists(f"{data}/{TOPICS_FOLDER}/{path.split('/')[1]}/{TOPIC_ABOUT}"))
    ]
    if not stray:
        return []
    if not rebuild:
        shown = ", ".join(sorted({path.rpartition("/")[0] for path in stray})[:SHOWN_MAX])
        raise StorageError(
            f"the catalogue {catalogue.path} has no topics, but the data folder has logs or cursors that it knows "
            f"nothing of and that nothing describes ({shown}). Put a copy of the catalogue back; or, to begin without "
            f"them, start once with ister serve {REBUILD_FLAG}: they are set aside, not deleted",
            code="catalogue-lost",
            action="fix",
        )
    number = 0
    while disk.exists(aside := f"{data}/set-aside-{number}"):
        number += 1
    told = []
    for path in stray:
        target = f"{aside}/{path}"
        disk.makedirs(target.rpartition("/")[0])
        disk.rename(f"{data}/{path}", target)
        told.append(f"{path} is of nothing that is known, and lies in {aside} now")
    for folder in {path.rpartition("/")[0] for path in stray}:
        disk.sync_folder(f"{aside}/{folder}")
        disk.sync_folder(f"{data}/{folder}")
    return told


__all__ = ["REBUILD_FLAG", "bring_back", "open_catalogue"]
