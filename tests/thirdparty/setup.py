"""Builds a module that cimports virtring, as any other project would."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import virtring

setup(
    name="ringloop",
    ext_modules=cythonize(
        [Extension("ringloop", ["ringloop.pyx"], include_dirs=virtring.get_include())]
    ),
)
