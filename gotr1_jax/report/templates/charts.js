// Charts: the values of the step under the pointer. Lines of several runs have steps of their own.
for (const figure of document.querySelectorAll(".chart")) {
  const { xs, steps, lines, labels } = JSON.parse(figure.dataset.lines);
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const at = figure.querySelector(".at");
  const points = new Map();
  xs.forEach((line, i) => line.forEach((x, j) => points.set(steps[i][j], x)));
  const known = lines.map((line, i) => new Map(steps[i].map((step, j) => [step, line[j]])));
  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY);
    const x = point.matrixTransform(svg.getScreenCTM().inverse()).x;
    let nearest = null;
    for (const [step, place] of points) {
      if (nearest === null || Math.abs(place - x) < Math.abs(points.get(nearest) - x)) nearest = step;
    }
    cursor.setAttribute("x1", points.get(nearest));
    cursor.setAttribute("x2", points.get(nearest));
    cursor.style.visibility = "visible";
    const values = known.map((line, i) => `${labels[i]} ${line.get(nearest) ?? "–"}`.trim());
    at.textContent = `step ${nearest}: ${values.join(", ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    at.textContent = "";
  });
}
