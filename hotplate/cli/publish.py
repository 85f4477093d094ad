"""`hotplate publish` and `hotplate import`: from a model, or from computed lists, to a live release."""

from hotplate.cli.options import ImportFlags, PublishFlags


def publish(flags: PublishFlags) -> None:
    """Compute every list of a model and publish them atomically as one release; old releases are erased.

    Exits with 3 if a gate or a running canary keeps the release from going live. By default, gates refuse a release
    that lost more than half of the live users or items.

    Example: hotplate publish model --store file:///var/lib/hotplate

    Filters of requests: hotplate publish model --store file:///var/lib/hotplate --item-attributes items.parquet

    Many users: hotplate publish model --store redis://HOST:6379/0 --master spark://HOST:7077

    Arm B of an experiment: hotplate publish other-model --store file:///var/lib/hotplate --arm B

    Rows, bytes and gates alone: hotplate publish model --store file:///var/lib/hotplate --dry-run

    Several lists, the first is the default: hotplate publish --list home=model --list basket=model2

    Wait for services of `serve --probation 5m`: hotplate publish model --probation-wait 6m
    """
    from hotplate.cli import publish_work

    publish_work.publish_models(flags)


def import_lists(flags: ImportFlags) -> None:
    """Publish computed lists: rows of user, item and score, in any order; they may exceed memory.

    Rows are sorted in a temporary folder (TMPDIR); each user's list keeps the highest scores. Exits with 3 if a gate or
    a running canary keeps the release from going live, as for `publish`.

    Example: hotplate import lists.parquet --titles titles.csv --store file:///var/lib/hotplate

    Another list in the same release: hotplate import home.parquet --list email=email.parquet
    """
    from hotplate.cli import publish_work

    publish_work.import_lists(flags)
