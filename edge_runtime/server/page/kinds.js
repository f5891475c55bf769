// The kinds of questions: what people call the server's templates, and what was chosen for a question.

const NAMES = {
  differential: "Diagnosis",
  emergency: "Emergency",
  treatment: "Treatment",
  medication: "Medicines",
  laboratory: "Laboratory",
  patient: "Plain words",
  prevention: "Prevention",
  exam: "Exam question",
  evidence: "Abstract",
  summary: "Note to summarise",
  general: "General",
};
const LANGUAGES = { en: "English", es: "Spanish", fr: "French", zh: "Chinese" };

const select = document.getElementById("kind");

/** Templates of one's own have their id for a name. */
const nameOf = (id) => NAMES[id] ?? id;

export const chosen = () => select.value;

/** `ids`: the server's templates. What is selected stays. */
export function offer(ids) {
  const known = Array.from(select.options, (option) => option.value).slice(1);
  if (known.join() === ids.join()) return;
  const before = select.value;
  select.length = 1;
  for (const id of ids) select.add(new Option(nameOf(id), id));
  select.value = ids.includes(before) ? before : "auto";
}

/** What was chosen for a question, and by which of its words. `facts` are those of the answer. */
export function described({ template, language, audience, why }) {
  const reader = audience === "patient" ? "for patients" : "for clinicians";
  const words = why.length > 0 ? `, by “${why.slice(0, 4).join("”, “")}”` : "";
  return `${nameOf(template)}, in ${LANGUAGES[language]}, ${reader}${words}`;
}
