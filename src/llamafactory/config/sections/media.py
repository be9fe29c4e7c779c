"""Limits for images, videos and audio before they reach a processor. Knows no processor."""

from typing import ClassVar

from llamafactory.config.section import Positive, PositiveReal, Section, option


class MediaConfig(Section):
    """Sizes and sampling rates of media."""

    title: ClassVar[str] = "Images, videos and audio"

    image_max_pixels: Positive = option(768 * 768, "Larger images are scaled down to this area.", unit="pixels")
    image_min_pixels: Positive = option(32 * 32, "Smaller images are scaled up to this area.", unit="pixels")
    image_do_pan_and_scan: bool = option(False, "Cut wide or tall images into crops (Gemma 3).")
    crop_to_patches: bool = option(False, "Cut images into tiles (InternVL).")
    video_max_pixels: Positive = option(
        256 * 256, "Larger frames are scaled down to this area.", unit="pixels per frame"
    )
    video_min_pixels: Positive = option(16 * 16, "Smaller frames are scaled up to this area.", unit="pixels per frame")
    video_fps: PositiveReal = option(2.0, "Frames taken from each second of a video.", unit="frames per second")
    video_maxlen: Positive = option(128, "Most frames taken from one video.", unit="frames")
    use_audio_in_video: bool = option(False, "Use the sound track of a video together with its frames.")
    audio_sampling_rate: Positive = option(16000, "Audio is resampled to this rate.", unit="Hz")
