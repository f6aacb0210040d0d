"""Building blocks of reports: what is drawn is read back from the SVG."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from psd_gs.errors import InputError
from psd_gs.report import (
    Bar,
    bar_chart,
    details,
    figure,
    grid,
    image_tag,
    line_chart,
    page,
    paragraph,
    preformatted,
    scatter_chart,
    table,
)

HOSTILE = "<script>alert('1')</script> & \"x\""
PNG = b"\x89PNG\r\n\x1a\n rest"


def svg(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", html, re.S)[0])


def lines(html: str) -> list[list[tuple[float, float]]]:
    """Points of every polyline, in pixels."""
    found = (line.get("points").split() for line in svg(html).iter("polyline"))
    return [[tuple(map(float, point.split(","))) for point in points] for points in found]


def ticks(html: str) -> list[str]:
    return [text.text for text in svg(html).iter("text")]


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.text = [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_holds_itself_together_and_asks_for_nothing():
    body = {
        "Curves": grid(line_chart({"a": [1, 2]}, title="A"), scatter_chart({"b": [(0, 1)]}), bar_chart([("c", 1)])),
        "Words": table([["a", 1]], ["name", "n"]) + details("more", preformatted("x")) + figure(image_tag(PNG), "p"),
    }
    html = page("A run", body, intro=paragraph("hello"))
    assert html.startswith("<!doctype html>")
    Balanced(html)
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert "default-src 'none'" in html
    assert 'name="viewport"' in html


def test_all_text_is_escaped():
    parts = [
        paragraph(HOSTILE),
        preformatted(HOSTILE),
        details(HOSTILE, ""),
        table([[HOSTILE]], [HOSTILE]),
        figure("", HOSTILE),
        image_tag(PNG, HOSTILE),
        line_chart({HOSTILE: [1, 2], "b": [1, 2]}, title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
        scatter_chart({HOSTILE: [(1, 2)], "b": []}, title=HOSTILE),
        bar_chart([(HOSTILE, 1.0)], title=HOSTILE, x_label=HOSTILE),
    ]
    html = page(HOSTILE, {HOSTILE: "".join(parts)})
    assert "<script" not in html
    assert Balanced(html).text.count(HOSTILE) >= 12


def test_points_lie_where_the_ticks_say():
    html = line_chart({"y": [0.0, 10.0, 5.0]}, [0, 50, 100])
    (points,) = lines(html)
    places = {
        text.text: float(text.get("y")) - 4 for text in svg(html).iter("text") if text.get("text-anchor") == "end"
    }
    assert points[0][1] == pytest.approx(places["0"], abs=0.1)
    assert points[1][1] == pytest.approx(places["10"], abs=0.1)
    assert points[2][1] == pytest.approx((places["0"] + places["10"]) / 2, abs=0.1)
    left, middle, right = (x for x, _ in points)
    assert middle - left == pytest.approx(right - middle, abs=0.1)


def test_a_logarithmic_axis():
    html = line_chart({"y": [1, 10, 100, 0, -3]}, log=True)
    (points,) = lines(html)
    assert len(points) == 3
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.1)
    assert {"1", "2", "5", "10", "100"} <= set(ticks(html))
    assert {"1e-05", "0.0001", "0.1"} <= set(ticks(line_chart({"y": [1e-5, 0.1]}, log=True)))


def test_what_is_missing_is_left_out_and_nothing_is_no_error():
    (points,) = lines(line_chart({"y": [1, None, float("nan"), float("inf"), 2]}))
    assert len(points) == 2
    for html in (line_chart({}), line_chart({"y": []}), line_chart({"y": [None]}), scatter_chart({}), bar_chart([])):
        svg(html)
    for values in ([0.0], [3.0, 3.0], [-2.0], [1e-30, 2e-30], [1e30, -1e30], [1e5, 1e5 + 1e-6]):
        svg(line_chart({"y": values}))
    svg(bar_chart([("a", float("nan")), ("b", 0.0)]))
    with pytest.raises(InputError, match="expected 3 values of y, received 2"):
        line_chart({"y": [1, 2]}, [1, 2, 3])


def test_long_series_are_thinned_and_smoothed():
    noisy = [100.0 + (-1) ** i for i in range(30_000)]
    html = line_chart({"y": noisy}, smooth=True)
    raw, mean = lines(html)
    assert max(len(raw), len(mean)) <= 401
    assert len(html) < 20_000
    heights = [y for _, y in mean[5:-5]]
    assert max(heights) - min(heights) < 2
    straight, line = lines(line_chart({"y": list(range(300))}, smooth=True))
    assert line == straight  # a running mean leaves a straight line as it is, to its ends


def test_bars_and_intervals():
    html = bar_chart([Bar("a", 2.0, 1.0, 4.0), ("b", -1.0), Bar("c", 0.0)], x_label="score")
    bars = [(float(bar.get("x")), float(bar.get("width"))) for bar in svg(html).iter("rect")]
    zero = bars[0][0]
    assert bars[1][0] + bars[1][1] == pytest.approx(zero, abs=0.2)
    assert bars[0][1] == pytest.approx(2 * bars[1][1], abs=0.3)
    (whisker,) = (path.get("d") for path in svg(html).iter("path") if path.get("stroke-width"))
    low, high = map(float, re.match(r"M([\d.]+) \d+H([\d.]+)", whisker).groups())
    unit = bars[1][1]
    assert (low - zero, high - zero) == pytest.approx((unit, 4 * unit), abs=0.3)
    assert "score" in ticks(html)


def test_pairs_against_the_diagonal():
    html = scatter_chart({"g": [(0.0, 0.0), (1.0, 1.0), (float("nan"), 1)]}, diagonal=True)
    (diagonal,) = lines(html)
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg(html).iter("circle")]
    assert dots == diagonal


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"GIF89a", "image/gif"),
        (b"RIFF1234WEBP", "image/webp"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"1234ftypisom", "video/mp4"),
    ],
)
def test_pictures_are_embedded(data, kind, tmp_path):
    (tmp_path / "file").write_bytes(data)
    assert image_tag(tmp_path / "file") == image_tag(data)
    assert f'src="data:{kind};base64,' in image_tag(data)
    assert image_tag(data).startswith("<video" if kind == "video/mp4" else "<img")


def test_other_files_are_no_pictures(tmp_path):
    with pytest.raises(InputError, match="bytes: expected a PNG, JPEG, GIF, WebP or mp4 file"):
        image_tag(b"hello")
    with pytest.raises(InputError, match=r"cannot read .*missing\.png: .* Check the path"):
        image_tag(tmp_path / "missing.png")
