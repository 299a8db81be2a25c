"""YAML from outside: parsed within a second or refused, whatever the text does."""

from __future__ import annotations

from typing import Any

import yaml

MOST_BYTES = 200_000
MOST_NODES = 20_000
MOST_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """The safe loader, with limits on depth and size, and without aliases that multiply or contain themselves."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._nodes = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node; counts it, and all that an alias repeats.

        Raises:
            ConstructorError: If the limits are exceeded.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._nodes
        self._depth += 1
        try:
            if self._depth > MOST_DEPTH:
                raise _error(f"it is nested more than {MOST_DEPTH} deep", event)
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if isinstance(event, yaml.events.AliasEvent):
            if id(node) not in self._sizes:
                raise _error(f"the alias *{event.anchor} contains itself", event)
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise _error(f"it has more than {MOST_NODES:,} values, aliases counted as often as they are used", event)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping.

        Raises:
            ConstructorError: If a key stands twice in it.
        """
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1] if len(keys) > len(set(keys)) else []
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, as ``yaml.safe_load`` gives it.

    Raises:
        YAMLError: If it is not YAML, is longer, deeper or larger than any config, or a key stands twice.
    """
    if len(text) > MOST_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters; at most {MOST_BYTES:,} are read")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ValueError, RecursionError, OverflowError) as error:  # dates and numbers that don't exist
        raise yaml.YAMLError(f"a value can't be read: {str(error)[:200]}") from error
    finally:
        loader.dispose()


def _error(message: str, event: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, event.start_mark)
