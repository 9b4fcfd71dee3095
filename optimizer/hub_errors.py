"""What the hub's client raises where the hub cannot be reached."""


def unreachable_error() -> type[Exception]:
    """Return the HTTP library's own class of it: which library depends on the client's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(
        base
        for base in HfHubHTTPError.__mro__
        if issubclass(base, Exception) and base.__name__ == "HTTPError"
    )
