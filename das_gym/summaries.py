"""Objects that are shown in a terminal or a notebook: a few lines, or a small table."""

from html import escape


class Summary:
    """An object whose `repr` is a few lines and that a notebook shows as a table. A subclass defines `facts`."""

    def facts(self) -> dict[str, str]:
        """Return the most important properties in words, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n  ".join([type(self).__name__, *(f"{name}: {value}" for name, value in self.facts().items())])

    def _repr_html_(self) -> str:
        cells = ((escape(name), escape(value)) for name, value in self.facts().items())
        rows = "".join(f'<tr><th style="text-align: left">{name}</th><td>{value}</td></tr>' for name, value in cells)
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
