"""The wheel's packages: ours, and the folder of presets as ``parl.presets``. All else stands in pyproject.toml."""

from setuptools import find_packages, setup

OURS = find_packages(include=["parl*", "envs*", "rollouts*", "rewards*", "model*"])

setup(packages=[*OURS, "parl.presets"], package_dir={"parl.presets": "configs"})
