"""What reading a set found: bad records, which were dropped, and odd ones, which were kept."""

import dataclasses
from collections import Counter
from typing import NamedTuple

from atss_jax.errors import UserError

MAX_EXAMPLES = 50
"""Messages kept per kind of oddity; the counts are complete."""


class Finding(NamedTuple):
    """Something wrong or odd in a data set."""

    kind: str
    message: str
    """What is wrong with which value, naming file and id."""
    image_id: int | str | None = None


@dataclasses.dataclass
class Health:
    """What was found while reading: `bad` records were dropped, `odd` ones kept."""

    num_images: int = 0
    """Images and annotations of the source, the bad ones included."""
    num_annotations: int = 0
    bad: Counter = dataclasses.field(default_factory=Counter)
    odd: Counter = dataclasses.field(default_factory=Counter)
    bad_examples: list[Finding] = dataclasses.field(default_factory=list)
    odd_examples: list[Finding] = dataclasses.field(default_factory=list)
    bad_images: int = 0
    bad_annotations: int = 0
    dropped_files: list[str] = dataclasses.field(default_factory=list)
    """Names of image files that were looked at and dropped."""

    def add_bad(self, finding: Finding, *, is_image: bool) -> None:
        """Counts a dropped image or annotation."""
        self.bad[finding.kind] += 1
        self.bad_images += is_image
        self.bad_annotations += not is_image
        if self.bad[finding.kind] <= MAX_EXAMPLES:
            self.bad_examples.append(finding)

    def add_odd(self, finding: Finding) -> None:
        """Counts something unusual that is kept."""
        self.odd[finding.kind] += 1
        if self.odd[finding.kind] <= MAX_EXAMPLES:
            self.odd_examples.append(finding)

    def settle(self, name: str, on_error: str, max_bad_fraction: float) -> None:
        """Stops for bad records, by the policy.

        Raises:
          ValueError: any bad record under "strict", too many under "skip".
        """
        if not self.bad:
            return
        counts = ", ".join(f"{kind}: {n}" for kind, n in sorted(self.bad.items()))
        shown = "\n  ".join(finding.message for finding in self._of_every_kind()[:10])
        if on_error == "strict":
            raise UserError(
                f"{name}: bad records ({counts}).\n  {shown}\nFix them, or drop them with "
                'data.on_error="skip".'
            )
        for what, bad, total in (
            ("images", self.bad_images, self.num_images),
            ("annotations", self.bad_annotations, self.num_annotations),
        ):
            if bad > max_bad_fraction * total:
                raise UserError(
                    f"{name}: {bad} of {total} {what} are bad ({counts}), more than "
                    f"data.max_bad_fraction={max_bad_fraction}.\n  {shown}\nFix the data, or "
                    "raise data.max_bad_fraction."
                )

    def _of_every_kind(self) -> list[Finding]:
        """Examples of what was dropped: one of each kind, then the second ones, and so on."""
        seen: Counter[str] = Counter()
        ranked = []
        for finding in self.bad_examples:
            seen[finding.kind] += 1
            ranked.append((seen[finding.kind], finding))
        return [finding for _, finding in sorted(ranked, key=lambda pair: pair[0])]

    def report(self) -> str:
        """A line for each kind of what was dropped or is odd: how many, and the first example."""
        lines = []
        for what, counts, examples in (
            ("dropped", self.bad, self.bad_examples),
            ("odd", self.odd, self.odd_examples),
        ):
            for kind, count in sorted(counts.items()):
                example = next(f.message for f in examples if f.kind == kind)
                lines.append(f"{what}: {count} {kind}, such as {example}")
        return "\n  ".join(lines)

    def summary(self) -> str:
        """One line: what was dropped; empty when nothing was."""
        if not self.bad:
            return ""
        counts = ", ".join(f"{kind}: {n}" for kind, n in sorted(self.bad.items()))
        return (
            f"dropped {self.bad_images} of {self.num_images} images and {self.bad_annotations} of "
            f"{self.num_annotations} annotations ({counts})"
        )
