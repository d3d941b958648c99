"""The wheel's packages: ours, and the folder of presets as ``parl._presets``. All else stands in pyproject.toml."""

from setuptools import find_packages, setup

OURS = find_packages(include=["parl*", "envs*", "rollouts*", "rewards*", "model*"])

setup(packages=[*OURS, "parl._presets"], package_dir={"parl._presets": "configs"})
