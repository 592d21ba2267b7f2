"""What `analysis.metrics` shows while it goes on, on standard error: a bar with time left, or lines in a pipe."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 10  # jobs between two lines of progress in a pipe


class JobProgress:
    """Follows the jobs for a person; a context manager."""

    def __init__(self, console, total):
        self.console, self.total, self.done = console, total, 0
        self.bar = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                console=console,
            )  # fmt: skip
            self.task = self.bar.add_task("metrics", total=total)

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception):
        if self.bar:
            self.bar.stop()

    def step(self, text):
        """Something begins or has moved on."""
        if self.bar:
            self.bar.update(self.task, description=text)

    def finish(self):
        """A job is finished."""
        self.done += 1
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        elif self.done % PLAIN_EVERY == 0:
            self.say(f"metrics: {self.done} of {self.total} jobs")

    def say(self, text):
        """One line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
