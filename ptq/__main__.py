"""Entry point of `python -m ptq`."""

from ptq.cli import main

if __name__ == "__main__":
    main(prog_name="ptq")
