"""Reads a run's configuration from recipes and the command line; the configuration itself is llc.recipe."""

from llc import config, recipe


def read(argv, *, description, options=None):
    """argv -> (llc.recipe.Config, options): YAML files by --config, then --section.key=value.

    options: a dataclass of a command's own keys, which have no section; if it is None, so is the second
    result. Raises UserError.
    """
    sections = ({"": options} if options is not None else {}) | recipe.sections()
    values = config.read(sections, argv, description=description)
    own = values.pop("", None)
    return recipe.Config.of(values), own
