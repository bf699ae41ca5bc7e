"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
for (const [id, { data, layout }] of Object.entries(figures)) {
  // by touch, dragging has to scroll the page
  if (id.endsWith("-map") && matchMedia("(pointer: fine)").matches) {
    layout.dragmode = "zoom";
    layout.xaxis.fixedrange = layout.yaxis.fixedrange = false;
  }
  Plotly.newPlot(id, data, layout, { displayModeBar: false, responsive: true });
}

for (const form of document.querySelectorAll("form.filter")) {
  const { data } = figures[form.dataset.map];
  const boxes = (name) => [...form.querySelectorAll(`input[name="${name}"]`)];
  const checked = (name) => new Set(boxes(name).filter((box) => box.checked).map((box) => box.value));

  function update() {
    const kinds = checked("kind"), types = checked("type");
    const [colour] = checked("colour");
    const shown = data.map(({ meta }) => kinds.has(meta.kind) && types.has(meta.type));
    Plotly.restyle(form.dataset.map, { visible: shown, "marker.color": data.map(({ meta }) => meta[colour]) });
    for (const swatch of form.querySelectorAll(".swatch")) swatch.hidden = colour !== `by ${swatch.dataset.by}`;
    const cells = data.reduce((sum, { text }, i) => sum + (shown[i] ? text.length : 0), 0);
    form.querySelector('[role="status"]').textContent =
      `${cells} cells shown, of ${types.size} of ${boxes("type").length} types.`;
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", update);
  form.addEventListener("click", ({ target }) => {
    if (target.type !== "button") return;
    for (const box of boxes("type")) box.checked = target.value === "all";
    update();
  });
  update();
}
