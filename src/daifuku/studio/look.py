"""How the page looks: colours, spacing and type for Gradio's parts, and the files for ours."""

from pathlib import Path

from gradio.themes import Base, Color, sizes

_FOLDER = Path(__file__).parent
SCRIPT = (_FOLDER / "studio.js").read_text()
STYLE = (_FOLDER / "studio.css").read_text()

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40"><path d="M3 28C3 16 10 7 20 7s17 9 17 21c0 4-7 6-17 '
    '6S3 32 3 28z" fill="#f0c9d5"/><ellipse cx="20" cy="24" rx="9" ry="7" fill="#b23a5e"/></svg>'
)

AZUKI = Color(
    name="azuki",
    c50="#fdf2f5",
    c100="#f9e1e8",
    c200="#f3c4d2",
    c300="#e998b0",
    c400="#dc6a8d",
    c500="#c94a71",
    c600="#b23a5e",
    c700="#932c4c",
    c800="#75253e",
    c900="#5c2034",
    c950="#350e1b",
)
"""The one accent: sweet red beans, what a daifuku is filled with."""

RICE = Color(
    name="rice",
    c50="#fbfaf8",
    c100="#f4f2ee",
    c200="#e8e4de",
    c300="#d5cfc6",
    c400="#a49c91",
    c500="#7a7268",
    c600="#5c554d",
    c700="#443f39",
    c800="#2b2825",
    c900="#1d1b19",
    c950="#141211",
)
"""Warm greys around it."""

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Ubuntu", "sans-serif")
"""Those of the machine: nothing is fetched."""


COLOURS: dict[str, str] = {
    "body_background_fill": "*neutral_50",
    "body_background_fill_dark": "*neutral_950",
    "body_text_color": "*neutral_800",
    "body_text_color_dark": "*neutral_100",
    "body_text_color_subdued": "*neutral_500",
    "body_text_color_subdued_dark": "*neutral_400",
    "background_fill_primary": "white",
    "background_fill_primary_dark": "*neutral_900",
    "background_fill_secondary": "*neutral_50",
    "background_fill_secondary_dark": "*neutral_950",
    "border_color_primary": "*neutral_200",
    "border_color_primary_dark": "*neutral_800",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_title_text_weight": "600",
    "block_title_text_size": "*text_sm",
    "block_title_text_color": "*neutral_600",
    "block_title_text_color_dark": "*neutral_300",
    "block_info_text_size": "*text_xs",
    "input_background_fill": "*neutral_50",
    "input_background_fill_dark": "*neutral_950",
    "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_700",
    "input_border_color_focus": "*primary_500",
    "input_border_color_focus_dark": "*primary_400",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 3px rgb(201 74 113 / 0.22)",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover_dark": "*primary_500",
    "button_primary_text_color": "white",
    "button_secondary_background_fill": "*neutral_100",
    "button_secondary_background_fill_hover": "*neutral_200",
    "button_secondary_background_fill_dark": "*neutral_800",
    "button_secondary_background_fill_hover_dark": "*neutral_700",
    "button_transition": "background 120ms ease",
    "slider_color": "*primary_600",
    "slider_color_dark": "*primary_500",
    "checkbox_label_shadow": "none",
    "layout_gap": "18px",
}
"""Of Gradio's parts, and how they stand; *primary_600 is the accent, *neutral_50 the lightest grey."""


def theme() -> Base:
    """Gradio's theme of the page."""
    made = Base(
        primary_hue=AZUKI,
        secondary_hue=AZUKI,
        neutral_hue=RICE,
        radius_size=sizes.radius_lg,
        spacing_size=sizes.spacing_md,
        text_size=sizes.text_md,
        font=SYSTEM_FONTS,
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    )
    return made.set(**COLOURS)
