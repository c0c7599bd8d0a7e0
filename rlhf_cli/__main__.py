"""Start the command line: `python -m rlhf_cli`, which accelerate and torchrun can launch too."""

from rlhf_cli.cli import main

if __name__ == "__main__":
    main()
