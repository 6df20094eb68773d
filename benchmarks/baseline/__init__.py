"""The ordinary stack that kiseki is compared with; frozen, see ../README.md."""
