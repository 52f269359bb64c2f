"""Finding a run by folder or by name, for the commands that take one."""

from pathlib import Path

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.training.run_folder import RunFolder


def find_run(run: str, root: Path) -> RunFolder:
    """The run folder that `run` names: a path, a name relative to `root` (as `lmxlab log list` shows it), or its end.

    Raises:
        UserError: when there is none, or when the end of a name fits several.
    """
    for path in (Path(run), root / run):
        if (path / "config.json").is_file():
            return RunFolder(path)
    folders = [path.parent for path in root.rglob("config.json")]
    known = {str(folder.relative_to(root)): folder for folder in folders}
    fits = [name for name in known if name.endswith(f"/{run}")]
    if len(fits) == 1:
        return RunFolder(known[fits[0]])
    if fits:
        raise UserError(f"{run!r} fits several runs: {', '.join(sorted(fits)[:5])}. Give more of the name.")
    if not known:
        raise UserError(f"There is no run {run!r}, and none at all in {str(root)!r}: train one, or give --runs FOLDER.")
    raise UnknownNameError("run", run, sorted(known)[-20:])
