"""How the scripts speak: log lines while they run, one line when the input is at fault."""

import logging
import sys
from collections.abc import Callable, Sequence

import datasets
import transformers
from transformers import TrainingArguments

logger = logging.getLogger(__name__)

EXIT_BAD_INPUT = 2


def set_up_logging(training: TrainingArguments) -> None:
    """Log to stderr at the level the training arguments ask for (default: info)."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    level = training.get_process_log_level()
    quiet_level = max(level, logging.WARNING)  # libraries report progress through their bars
    logging.getLogger("training").setLevel(
        logging.INFO if training.log_level == "passive" and training.should_log else level
    )
    datasets.utils.logging.set_verbosity(quiet_level)
    transformers.utils.logging.set_verbosity(quiet_level)


def exit_code(
    run: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None
) -> int:
    """Call `run(argv)`; 0 if it returns, `EXIT_BAD_INPUT` and a one-line message if it refuses.

    The scripts and the libraries below them refuse bad input with ValueError and unreachable
    files with OSError. Anything else is a defect and keeps its traceback, which `--log_level
    debug` shows for refusals as well.
    """
    try:
        run(argv)
    except (ValueError, OSError) as error:
        logger.debug("The refusal came from here", exc_info=True)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]
) -> None:
    """Print named rows of numbers under column names."""
    width = max([len(name) for name, _ in rows] + [len(title)])
    print(f"\n{title:<{width}}  " + "  ".join(f"{column:>10}" for column in columns))
    for name, values in rows:
        print(f"{name:<{width}}  " + "  ".join(f"{value:>10.2f}" for value in values))
