"""Workers that evaluations took, as an archive keeps them over the lives of its drivers."""

from collections.abc import Mapping
from typing import Any

from optimizer.archive.records import Row, decode_key, key_columns, storable
from workers.toll import Loss


def loss_row(loss: Loss, number: int, lost_at: str) -> Row:
    """Encode a loss, or that one is forgiven."""
    return {
        "loss": number,
        **key_columns(loss.key),
        "attempt": loss.attempt,
        "node": loss.node,
        "error_class": loss.error_class,
        "message": storable(loss.message),
        "is_forgiven": int(loss.is_forgiven),
        "lost_at": lost_at,
    }


def decode_loss(row: Mapping[Any, Any]) -> Loss:
    """Read what ``loss_row`` wrote."""
    return Loss(
        key=decode_key(row),
        attempt=row["attempt"],
        node=row["node"],
        error_class=row["error_class"],
        message=row["message"],
        is_forgiven=bool(row["is_forgiven"]),
    )
