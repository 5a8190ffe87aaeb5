"""Build steps beyond pyproject.toml: the gRPC stubs of protos/, and the scenarios at the top of the tree."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def generate_stubs() -> None:
    """Run protoc from the root, so that `from hypergpu.protos import coordinator_pb2` works."""
    from grpc_tools import protoc  # noqa: PLC0415  (a build requirement, absent at run time)

    sources = sorted(str(path) for path in Path("hypergpu/protos").glob("*.proto"))
    arguments = ["protoc", "-I.", "--python_out=.", "--pyi_out=.", "--grpc_python_out=.", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see its message above")


class Build(build_py):
    """`build_py` that makes the stubs, and takes the scenarios along."""

    def run(self) -> None:
        """Generate, build as usual, and copy."""
        generate_stubs()
        super().run()
        if not self.editable_mode:
            self.copy_tree("scenarios", str(Path(self.build_lib) / "hypergpu" / "scenarios"))


if __name__ == "__main__":
    setup(cmdclass={"build_py": Build})
