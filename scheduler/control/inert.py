"""Settings of a model that do nothing as things are.

They are no mistake that could be refused: what makes them inert is the model, which a Triton may
replace at any time.
"""

from __future__ import annotations

from scheduler.backends.catalog import ModelSpec
from scheduler.config import Settings


def delay_not_given(settings: Settings, spec: ModelSpec) -> str:
    """The sentence for fixed_delay batching without a delay, which 0 is, too; empty: there is one.

    One that Triton has acts there, and sizes act without one.
    """
    batching = settings.batching_for(spec.name)
    if batching.batching != "fixed_delay" or batching.preferred_batch_rows:
        return ""
    written = settings.models.get(spec.name, {}).keys() | settings.defaults.model_fields_set
    if "max_queue_delay" in written or spec.config.dynamic_batching.max_queue_delay_microseconds:
        return ""
    return (
        "batching: fixed_delay has no max_queue_delay: no batch waits for more rows, and nothing "
        "is predicted; set max_queue_delay, to 0 where this is meant, or leave batching out"
    )
