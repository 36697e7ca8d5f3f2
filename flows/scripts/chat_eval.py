"""The reference's script of this name: `python -m flows.scripts.chat_eval`, or with torchrun."""

from flows.scripts.entry import main

if __name__ == "__main__":
    main("chat_eval")
