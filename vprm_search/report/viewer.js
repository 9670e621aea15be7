"use strict";
// Draws one search from the JSON block of this page. Text from the search reaches the page only
// through textContent and never becomes markup, an attribute with meaning, or a URL.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const BOX = { width: 250, height: 40, across: 280, down: 52 };
  const MARK = { open: "·", finished: "●", truncated: "…", pruned: "✂", failed: "✗" };

  const html = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value) => (value === null ? "–" : value.toFixed(2));
  const cut = (text, limit) => (text.length > limit ? text.slice(0, limit - 1) + "…" : text);
  const known = new Map(data.nodes.map((node) => [node.id, node]));
  const drawn = new Map();
  const open = new Set(); // parents whose folded steps are shown
  const foldedInto = new Map(); // parent -> its folded steps
  for (const node of data.nodes) {
    if (node.fold === null) continue;
    if (!foldedInto.has(node.fold)) foldedInto.set(node.fold, []);
    foldedInto.get(node.fold).push(node);
  }
  const places = new Map(); // what is drawn -> { column, row }
  let selected = null;
  const answer = data.nodes.filter((node) => node.chosen).pop() || data.nodes.find((node) => node.fold === null);

  const pathTo = (node) => {
    const path = [];
    for (let here = node; here; here = known.get(here.parent)) path.unshift(here);
    return path;
  };

  const noteOf = (node) => {
    const word = node.said || node.reason || node.status;
    const state = node.status === "open" && !node.said ? "" : `${MARK[node.status]} ${word}`;
    return state + (node.copies > 1 ? ` ×${node.copies}` : "");
  };

  const select = (node, scroll = true) => {
    selected = node;
    if (node.fold !== null && !open.has(node.fold)) {
      open.add(node.fold);
      drawTree();
    }
    for (const group of drawn.values()) group.classList.remove("here");
    const group = drawn.get(node.id);
    if (group) {
      group.classList.add("here");
      if (scroll) group.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    const list = at("path");
    list.replaceChildren();
    for (const step of pathTo(node)) {
      const item = html("li", step === node ? "here" : "");
      item.style.borderLeftColor = step.colour;
      const score = html("span", "score", number(step.score));
      score.style.color = step.colour;
      const text = html("span", "text", step.reading ? "" : step.text || "(end)");
      if (step.reading) {
        const [before, read, after] = step.reading.parts;
        const mark = html("mark", "", read);
        const unfinished = step.status === "truncated" ? "; the path is unfinished" : "";
        mark.title = `the answer was read here (${step.reading.source})${unfinished}`;
        text.append(before, mark, after);
      }
      item.append(score, text);
      const why = step.reason || step.score_reason;
      const merged = step.copies > 1 ? `proposed ${step.copies} times` : "";
      const state = step.status === "open" && !why ? "" : step.status + (why ? ": " + why : "");
      const who = step.policy ? `by ${step.policy}` : "";
      const status = [merged, who, state].filter((part) => part).join("; ");
      if (status) item.append(html("div", "why", status));
      list.append(item);
    }
    const path = node.path_score === null ? "" : `path score (${data.aggregate}) ${number(node.path_score)}; `;
    at("where").textContent = `${path}round ${node.round}, step ${node.column + 1}`;
  };

  const placed = (id) => {
    const place = places.get(id);
    return { x: place.column * BOX.across, y: place.row * BOX.down };
  };

  const pressed = (group, act) => {
    group.addEventListener("click", act);
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        act();
      }
    });
  };

  const drawNode = (node) => {
    const { x, y } = placed(node.id);
    const gone = node.status === "pruned" || node.status === "failed";
    const group = svg("g", {
      class: "node" + (gone ? " gone" : ""), transform: `translate(${x},${y})`, tabindex: 0, role: "button",
    });
    group.setAttribute("aria-label", `${node.status}, score ${number(node.score)}: ${cut(node.text, 200)}`);
    group.append(
      svg("rect", { class: "box", width: BOX.width, height: BOX.height, rx: 6, stroke: node.colour }),
      svg("rect", { width: 40, height: BOX.height, rx: 6, fill: node.colour }),
      svg("text", { class: "badge", x: 20, y: 25, "text-anchor": "middle" }, number(node.score)),
      svg("text", { x: 48, y: 17 }, cut(node.text || "(end)", 30)),
      svg("text", { class: "note", x: 48, y: 32 }, cut(noteOf(node), 38)),
    );
    pressed(group, () => select(node));
    drawn.set(node.id, group);
    return group;
  };

  const drawFold = (stub) => {
    const { x, y } = placed(stub.id);
    const group = svg("g", { class: "node fold", transform: `translate(${x},${y})`, tabindex: 0, role: "button" });
    const text = `${MARK.pruned} ${stub.steps.length} pruned steps`;
    group.setAttribute("aria-label", `show ${stub.steps.length} pruned steps`);
    group.append(
      svg("rect", { class: "box", width: BOX.width, height: BOX.height, rx: 6 }),
      svg("text", { class: "note", x: 14, y: 25 }, text),
    );
    pressed(group, () => {
      open.add(stub.parent);
      drawTree();
      select(stub.steps[0]);
    });
    return group;
  };

  const drawEdge = (item) => {
    if (!known.has(item.parent)) return null;
    const from = placed(item.parent);
    const to = placed(item.id);
    const [x1, x2] = [from.x + BOX.width, to.x];
    const [y1, y2] = [from.y + BOX.height / 2, to.y + BOX.height / 2];
    const middle = (x1 + x2) / 2;
    const d = `M${x1},${y1} C${middle},${y1} ${middle},${y2} ${x2},${y2}`;
    return svg("path", { class: "edge" + (item.chosen ? " chosen" : ""), d });
  };

  // Returns what to draw, a parent before its children: steps, and one stub in place of a fold.
  const shown = () => {
    const items = [];
    const stubbed = new Set();
    for (const node of data.nodes) {
      if (node.fold === null || open.has(node.fold)) {
        items.push(node);
      } else if (!stubbed.has(node.fold)) {
        stubbed.add(node.fold);
        const steps = foldedInto.get(node.fold);
        items.push({ id: "fold " + node.fold, parent: node.fold, column: node.column, steps });
      }
    }
    return items;
  };

  // Gives every leaf a row of its own and every parent the middle of its children.
  const arrange = (items) => {
    places.clear();
    const spans = new Map();
    const parents = new Set(items.map((item) => item.parent));
    let rows = 0;
    for (const item of items) {
      places.set(item.id, { column: item.column, row: parents.has(item.id) ? null : rows++ });
    }
    for (const item of [...items].reverse()) {
      const span = spans.get(item.id);
      const place = places.get(item.id);
      if (span) place.row = (span[0] + span[1]) / 2;
      const above = spans.get(item.parent) || [place.row, place.row];
      spans.set(item.parent, [Math.min(above[0], place.row), Math.max(above[1], place.row)]);
    }
    return rows;
  };

  const drawTree = () => {
    const items = shown();
    const width = data.columns * BOX.across;
    const height = arrange(items) * BOX.down;
    const picture = svg("svg", { width, height, viewBox: `-3 -3 ${width + 6} ${height + 6}` });
    drawn.clear();
    const edges = items.map(drawEdge).filter((edge) => edge !== null);
    picture.append(...edges, ...items.map((item) => (item.steps ? drawFold(item) : drawNode(item))));
    at("canvas").replaceChildren(picture);
    if (selected && drawn.has(selected.id)) drawn.get(selected.id).classList.add("here");
    const button = at("fold");
    button.hidden = foldedInto.size === 0;
    button.textContent = open.size < foldedInto.size ? "show all pruned steps" : "fold pruned steps";
  };

  const centre = (node) => {
    const { x, y } = placed(node.id);
    const canvas = at("canvas");
    canvas.scrollTop = y + BOX.height / 2 - canvas.clientHeight / 2;
    canvas.scrollLeft = x + BOX.width / 2 - canvas.clientWidth / 2;
  };

  const foldOrShow = () => {
    const all = open.size < foldedInto.size;
    open.clear();
    if (all) for (const parent of foldedInto.keys()) open.add(parent);
    drawTree();
    if (answer && !places.has(selected.id)) select(answer, false);
    if (selected) centre(selected);
  };

  const drawHead = () => {
    document.title = data.title;
    at("title").textContent = data.title;
    at("question").textContent = data.question;
    for (const source of data.images) {
      const image = html("img");
      image.alt = "an image of the problem";
      image.addEventListener("load", () => image.classList.toggle("small", image.naturalHeight < 168));
      image.src = source; // data:image/png only, checked when the page was made
      at("images").append(image);
    }
    const answer = at("answer");
    answer.textContent = "Answer: " + data.said;
    if (data.expected !== null) {
      const right = data.answer === data.expected;
      answer.append(html("span", right ? "right" : "wrong", right ? " ✓ right" : ` ✗ wrong, it is ${data.expected}`));
    }
    at("facts").textContent = data.facts;
    for (const [label, colour] of data.scale) {
      const swatch = html("span", "swatch");
      swatch.style.backgroundColor = colour;
      at("scale").append(swatch, html("span", "", label));
    }
    if (data.hidden) at("hidden").textContent = `${data.hidden} more steps are not shown`;
  };

  const drawCandidates = () => {
    const body = at("candidates");
    for (const candidate of data.candidates) {
      const row = html("tr", "pick");
      row.tabIndex = 0;
      row.append(
        html("td", "", candidate.said),
        html("td", "number", number(candidate.score)),
        html("td", "number", candidate.votes.toFixed(2)),
        html("td", "", candidate.status),
        html("td", "number", candidate.step_scores.map(number).join("  ")),
      );
      const open = () => known.has(candidate.node) && select(known.get(candidate.node));
      row.addEventListener("click", open);
      row.addEventListener("keydown", (event) => event.key === "Enter" && open());
      body.append(row);
    }
  };

  drawHead();
  drawTree();
  drawCandidates();
  at("fold").addEventListener("click", foldOrShow);
  if (answer) {
    select(answer, false);
    centre(answer);
  }
})();
