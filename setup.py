"""Put `configs/` and `data/sample/` into the package as `nlicot/shipped/`; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nlicot*"]), "nlicot.shipped.configs", "nlicot.shipped.sample"],
    package_dir={"nlicot.shipped.configs": "configs", "nlicot.shipped.sample": "data/sample"},
    package_data={
        "nlicot": ["py.typed"],
        "nlicot.model.fast": ["attention.cpp", "decode_step.c"],
        "nlicot.report": ["template/*"],
        "nlicot.teacher": ["prices.yaml", "prompts/*.yaml"],
        "nlicot.shipped.configs": ["*.yaml", "overlays/*.yaml", "sweeps/*.yaml"],
        "nlicot.shipped.sample": ["*/*"],
    },
)
