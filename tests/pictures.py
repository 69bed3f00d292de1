"""What pictures of figures say."""

from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def texts_in(path):
    """The texts in an SVG file, as a set."""
    return {"".join(element.itertext()) for element in ElementTree.parse(path).getroot().iter(f"{SVG}text")}
