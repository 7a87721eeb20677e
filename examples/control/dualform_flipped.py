"""A control in ICL's place: the same demonstrations, every one of them with a wrong label."""

from dataclasses import dataclass

from dualform.studies.controls import Control


@dataclass(frozen=True, kw_only=True)
class FlippedLabels(Control):
    def make(self, builder):
        flipped = builder.demonstrations.relabelled(builder.experiment.task, "flipped")
        yield builder.prompted(self, builder.experiment.encode(flipped).encoded)

    def work(self, about):
        flipped = about.drawn.demonstrations.relabelled(about.experiment.task, "flipped")
        return about.prompted(len(about.experiment.encode(flipped).encoded.prefix))


FLIPPED_LABELS = FlippedLabels(
    name="flipped_labels",
    title="flipped labels",
    meaning="ICL on the demonstrations, each with a wrong label.",
    kind="floor",  # nothing true is learned, so a real similarity should lie above it
    beside="ft",  # it is compared with FT
    place="first",  # in ICL's place
)
