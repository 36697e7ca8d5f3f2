"""The two groups of commands as a program of their own, as `nanochat` has them."""

import typer

from flows.by_hand.commands import eval_app, train_app

app = typer.Typer(rich_markup_mode=None)
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")

if __name__ == "__main__":
    app()
