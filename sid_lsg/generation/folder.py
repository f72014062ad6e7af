"""Write a model's images to a folder, and continue an interrupted command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from sid_lsg.data.sequences import read_lines
from sid_lsg.distributed.processes import gather
from sid_lsg.files.replacing import remove_leftovers, replacing, writing
from sid_lsg.generation.image_files import ImageFiles, ImageRequest, sample_files
from sid_lsg.generation.models import ImageModel
from sid_lsg.generation.overview import write_archive, write_sheet
from sid_lsg.images.folder import CAPTIONS, MANIFEST, SHEET, is_hidden
from sid_lsg.messages.errors import SharedError, UsageError

ARCHIVE = "images.npz"


class ImageFolder:
    """A folder for the images of one model.

    It also holds `images.json` with the model and its settings, `metadata.jsonl` with each image's
    prompt and seed, and optionally a contact sheet and an archive. An interrupted command continues
    with the missing images.
    """

    def __init__(
        self, root: Path, requests: Sequence[ImageRequest], overwrite: bool | None = None
    ) -> None:
        """Check that the folder holds only files of an earlier command.

        Args:
            root: The folder.
            requests: The images.
            overwrite: Replace the images of an earlier command, and keep files with other names.
                None for a command without --overwrite.

        Raises:
            UsageError: If the folder holds other files.
        """
        self.root, self.requests, self.overwrite = root, requests, overwrite
        if not root.is_dir() or (root / MANIFEST).is_file():
            return
        names = [path.name for path in sorted(root.iterdir()) if not is_hidden(path.name)]
        if overwrite:
            needed = {request.name for request in requests} | {SHEET, ARCHIVE, CAPTIONS}
            names = [name for name in names if name in needed]
            remedy = "--overwrite replaces only files that `generate` wrote. Choose another folder."
        elif overwrite is None:
            remedy = f"Choose another --output: its folder {root.name!r} is for the model's images."
        else:
            remedy = "Choose another folder, or give --overwrite (it keeps files with other names)."
        if names:
            raise UsageError(
                f"--output: {str(root)!r} holds other files, such as {names[0]!r}. {remedy}"
            )

    def write(
        self,
        model: ImageModel,
        settings: dict[str, Any],
        batch_size: int,
        fabric: Fabric,
        *,
        sheet: bool = False,
        archive: bool = False,
        progress: str | None = None,
    ) -> ImageFiles:
        """Sample the missing images. Call it on all processes.

        Args:
            model: The model to sample.
            settings: Further settings that the images depend on, besides `model.about`.
            batch_size: Images per batch.
            fabric: The processes.
            sheet: Write a contact sheet.
            archive: Write an archive of all images.
            progress: Label of a progress bar; by default none is shown.

        Raises:
            UsageError: If the folder has images of another model or other settings, an image is
                not finite, or a file cannot be written.
            SharedError: If the processes have read different models.
        """
        if any(about != model.about for about in gather([model.about])):
            raise SharedError(
                f"--model: the processes have read different weights of {model.about['model']!r}, "
                "probably since a run saves there. Give the path of a numbered checkpoint."
            )
        with writing(self.root, "output"):
            if fabric.is_global_zero:
                remove_leftovers(self.root)
                if self.overwrite:
                    self._clear()
                self._check_manifest(model.about | settings)
                self._write_captions()
            fabric.barrier()
            made = sample_files(model, self.requests, self.root, batch_size, fabric, progress)
            if fabric.is_global_zero and sheet:
                write_sheet(self.root / SHEET, self.requests, made.paths)
            if fabric.is_global_zero and archive:
                write_archive(self.root / ARCHIVE, self.requests, made.paths)
        return made

    def _clear(self) -> None:
        """Delete the files of an earlier command, its manifest last."""
        captions = self.root / CAPTIONS
        if not (self.root / MANIFEST).is_file():
            return
        try:
            rows = [json.loads(row) for row in read_lines(captions)] if captions.is_file() else []
            names = [Path(row["file_name"]).name for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--overwrite: cannot tell which files to replace: {str(captions)!r} is not a file "
                f"that `generate` wrote ({error}). Choose another folder, or delete this one."
            ) from error
        for name in (*names, SHEET, ARCHIVE, CAPTIONS, MANIFEST):
            (self.root / name).unlink(missing_ok=True)

    def _check_manifest(self, about: dict[str, Any]) -> None:
        """Reject a folder with images of another model or other settings; write the manifest.

        A manifest without finished images is replaced.
        """
        path = self.root / MANIFEST
        if not path.is_file() or next(self.root.glob("[!.]*.png"), None) is None:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(about, indent=2) + "\n")
            return
        try:
            earlier = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"--output: cannot read {str(path)!r} ({error}).") from error
        for name in (*about, *earlier):
            if about.get(name) != earlier.get(name):
                what = f"{name} is {earlier.get(name)!r}, and now {about.get(name)!r}"
                if name.endswith("_sha256"):
                    what = f"{name.removesuffix('_sha256').replace('_', ' ')} differ"
                remedy = "or delete this one" if self.overwrite is None else "or give --overwrite"
                raise UsageError(
                    f"--output: {str(self.root)!r} holds images made with other settings: their "
                    f"{what}. Choose another folder, {remedy}."
                )

    def _write_captions(self) -> None:
        with (
            replacing(self.root / CAPTIONS) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for name, prompt, seed in self.requests:
                row = {"file_name": name, "text": prompt, "seed": seed}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
