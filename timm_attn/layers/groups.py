"""Groups of parameters by depth, as timm's ``layer_decay`` takes them, with the attention kept apart."""


def without_attention(matcher: dict, attention: str) -> dict:
    """Patterns of a model's ``group_matcher`` that no longer match its attention.

    Args:
        matcher: Patterns by group, each alone or as pairs with an order.
        attention: Pattern of the beginning of the attention's names.
    """
    return {
        name: [(f'(?!{attention})(?:{pattern})', order) for pattern, order in spec]
        if isinstance(spec, list | tuple)
        else f'(?!{attention})(?:{spec})'
        for name, spec in matcher.items()
    }
