"""Published arguments as defaults."""


def with_defaults(kwargs: dict, rd_channels: int, **defaults) -> dict:
    """Arguments as published, where the caller gives none; a ratio from the caller also sets the hidden width."""
    if 'rd_ratio' not in kwargs:
        defaults['rd_channels'] = rd_channels
    return {**defaults, **kwargs}
