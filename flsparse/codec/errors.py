"""PayloadError, the one exception that decoding a payload can raise."""


class PayloadError(ValueError):
    """A payload is damaged, hostile, of another version, or made for other arrays or another reference.

    The message names the fault. Nothing was decoded.
    """


def require(condition: bool, message: str) -> None:
    """Raise :class:`PayloadError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise PayloadError(message)
