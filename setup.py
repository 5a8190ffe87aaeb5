"""Generate the gRPC stubs from protos/ whenever the package is built or installed; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def generate_stubs() -> None:
    """Run protoc from the root, so that `from protos import coordinator_pb2` just works."""
    from grpc_tools import protoc  # noqa: PLC0415  (a build requirement, absent at run time)

    sources = sorted(str(path) for path in Path("protos").glob("*.proto"))
    arguments = ["protoc", "-I.", "--python_out=.", "--pyi_out=.", "--grpc_python_out=.", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see its message above")


class BuildWithStubs(build_py):
    """`build_py` that makes the stubs first."""

    def run(self) -> None:
        """Generate, then build as usual."""
        generate_stubs()
        super().run()


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithStubs})
