"""Starting workers with Ray. Knows no launcher."""

from typing import ClassVar

from llamafactory.config.section import TRAIN, JsonMapping, Positive, Section, option


class RayConfig(Section):
    """Workers and rendezvous of a Ray start."""

    title: ClassVar[str] = "Ray"
    commands: ClassVar[tuple[str, ...]] = TRAIN

    ray_num_workers: Positive = option(1, "Workers, one device each.", unit="workers")
    ray_init_kwargs: JsonMapping | None = option(None, "Arguments of ray.init, as a mapping or JSON text.")
    master_addr: str | None = option(None, "Address where the workers meet; left out, the Ray head.")
    master_port: str | None = option(None, "Port where the workers meet; left out, a free one.")
