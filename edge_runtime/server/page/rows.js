// A list of names and values, in which what nobody tells is never a 0.

/** `values`: texts or nodes by name; null where nobody tells. What is the same stays, for who is reading it. */
export function rows(list, values) {
  const next = list.cloneNode(false);
  for (const [name, value] of Object.entries(values)) {
    const row = document.createElement("div");
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    term.append(name);
    detail.append(...[value ?? "not available"].flat());
    row.append(term, detail);
    next.append(row);
  }
  if (!next.isEqualNode(list)) list.replaceChildren(...next.children);
}
