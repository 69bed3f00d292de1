"""YAML files of configuration, read as plain data and with bounds."""

import yaml

from llc.errors import UserError

MAX_BYTES = 1 << 16  # of a file; the longest recipe here has 2 kB


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (*name), as a few lines of them can expand beyond any memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        """Refuses a key that is given twice, of which PyYAML would silently drop the first."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return mapping


def read_yaml(path, flag="config"):
    """The mapping in the YAML file `path`, {} if it is empty. flag: the flag that named the file.

    Raises UserError for a file that cannot be read, is too large, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"--{flag} {path}: larger than {MAX_BYTES:,} bytes, which no configuration is")
        content = yaml.load(text.decode("utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"--{flag} {path}: cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # PyYAML lets Python's own errors through: a day 99, nesting that is too deep
        raise UserError(f"--{flag} {path}: not a valid YAML file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--{flag} {path}: expected sections with keys, found {type(content).__name__}")
    return content
