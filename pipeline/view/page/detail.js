// The panel of one token: what the teacher expected in its place, and the student beside it.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** White space made visible. */
export const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";

const percent = (p) => (p === undefined ? "–" : p >= 0.9995 ? "100 %" : p < 0.0005 ? "<0.1 %" : `${(100 * p).toFixed(1)} %`);
const nats = (x) => (x === undefined ? "–" : x.toFixed(3));

export function showDetail(panel, context, said) {
  const student = said.student;
  panel.replaceChildren(
    element("p", { className: "context" }, element("span", { textContent: `…${context}` })),
    element("h2", { textContent: visible(said.label.text), title: `id ${said.label.id}` }),
    stats(said, student),
    element("h3", { textContent: "Head: the teacher’s most likely tokens" }),
    bars(said, student),
  );
  if (said.tail.length) panel.append(element("h3", { textContent: `Tail: ${said.tail.reduce((n, t) => n + t.count, 0)} draws from the rest` }), tail(said, student));
  if (student) panel.append(element("h3", { textContent: "The student’s most likely tokens" }), favourites(said, student));
}

function stats(said, student) {
  const rows = [
    ["", element("b", { textContent: "teacher" }), student ? element("b", { textContent: "student" }) : ""],
    ["probability of the label", percent(said.p_label), student ? percent(student.p_label) : ""],
    ["rank of the label", said.rank + 1, ""],
    ["entropy, nats", nats(said.entropy), student ? nats(student.entropy) : ""],
  ];
  if (student) rows.push(["KL on head and rest, nats", "", nats(student.kl)]);
  return element("div", { className: "stats" }, ...rows.flat().map((x) => element("span", {}, x)));
}

function line(said, entry, teacher, student, extra = "") {
  const pair = element("span", { className: "pair" });
  for (const [kind, p] of [["t", teacher], ["s", student]]) {
    if (p === undefined) continue;
    const bar = element("i", { className: kind });
    bar.style.setProperty("--p", p);
    pair.append(bar);
  }
  const name = element("code", { textContent: visible(entry.text), title: entry.id === undefined ? "" : `id ${entry.id}` });
  if (entry.id === said.label.id) name.classList.add("is");
  return [name, pair, element("b", { className: "t", textContent: extra || percent(teacher) }), element("b", { className: "s", textContent: said.student ? percent(student) : "" })];
}

function bars(said, student) {
  const cells = said.head.flatMap((entry) => line(said, entry, entry.p, entry.student));
  const rest = line(said, { text: "everything else" }, said.rest[0], student?.rest);
  rest[0].textContent = "everything else";
  rest[0].classList.add("dim");
  return element("div", { className: "bars", id: "head" }, ...cells, ...rest);
}

function tail(said, student) {
  const draws = said.tail.reduce((n, t) => n + t.count, 0);
  const sorted = [...said.tail].sort((a, b) => b.count - a.count);
  return element("div", { className: "bars", id: "tail" }, ...sorted.flatMap((t) => line(said, t, (said.rest[0] * t.count) / draws, student && t.student, `${t.count} ×`)));
}

function favourites(said, student) {
  const known = new Map(said.head.map((t) => [t.id, t.p]));
  return element("div", { className: "bars", id: "favourites" }, ...student.top.flatMap((t) => line(said, t, known.get(t.id), t.p)));
}
