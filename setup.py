"""Makes an editable install win over a folder called das_gym, such as a clone seen from its parent folder.

setuptools asks the finder of an editable install last, after the working folder, where Python imports any folder of that
name as a namespace package. All else is in pyproject.toml.
"""

from setuptools import setup
from setuptools.command import editable_wheel

editable_wheel._FINDER_TEMPLATE = editable_wheel._FINDER_TEMPLATE.replace(
    "sys.meta_path.append(", "sys.meta_path.insert(0, "
)
setup()
