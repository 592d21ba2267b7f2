"use strict";
// Pictures become figures that answer to the pointer when they come into sight; without this script they stay.
const specs = JSON.parse(document.getElementById("specs").textContent);
const theme = document.getElementById("theme");
const linear = document.getElementById("linear");
const pressed = (button) => button.getAttribute("aria-pressed") === "true";
const dark = () => pressed(theme);

function withScales(node) {
  if (Array.isArray(node)) return node.map(withScales);
  if (node === null || typeof node !== "object") return node;
  const copy = Object.fromEntries(Object.entries(node).map(([k, v]) => [k, k === "values" ? v : withScales(v)]));
  if (copy.type !== "log") return copy;
  return { ...copy, type: "linear", base: undefined, ...(copy.domain ? { domain: [0, copy.domain[1]] } : {}) };
}

function look(width) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, rule] = ["--ink", "--soft", "--rule"].map((name) => style.getPropertyValue(name).trim());
  const size = width < 500 ? 11 : 12;
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: soft, titleColor: ink, gridColor: rule, domainColor: soft, tickColor: soft,
      labelFontSize: size, titleFontSize: size, titleFontWeight: "normal", gridOpacity: 0.6 },
    legend: { labelColor: ink, labelFontSize: size, columns: width < 500 ? 2 : 5 },
  };
}

async function draw(chart) {
  const { spec, linear: scalable } = specs[chart.id];
  const live = chart.querySelector(".live") ?? chart.appendChild(document.createElement("div"));
  live.className = "live";
  live.setAttribute("role", "group");
  live.setAttribute("aria-label", chart.querySelector("img").alt);
  chart.classList.add("drawn"); // first: the width is taken from what is visible
  chart.view?.finalize();
  try {
    const found = await vegaEmbed(live, scalable && pressed(linear) ? withScales(spec) : spec, {
      ast: true, actions: false, renderer: "svg", config: look(live.clientWidth), tooltip: { theme: dark() ? "dark" : "light" },
    });
    chart.view = found.view;
  } catch (error) {
    chart.classList.remove("drawn");
    console.error(error);
  }
}

function redraw() {
  document.querySelectorAll(".chart.drawn").forEach(draw);
}

function paint() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
}

for (const button of [theme, linear]) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(!pressed(button)));
    paint();
    redraw();
  });
}
theme.setAttribute("aria-pressed", String(matchMedia("(prefers-color-scheme: dark)").matches));
theme.parentElement.hidden = false;
paint();

const seen = new IntersectionObserver(
  (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => { seen.unobserve(e.target); draw(e.target); }),
  { rootMargin: "300px" },
);
document.querySelectorAll(".chart").forEach((chart) => seen.observe(chart));
