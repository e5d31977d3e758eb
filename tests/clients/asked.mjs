// What the JavaScript jobs share, as `asked.py` is for those in Python.

export const QUESTION =
  "Table staff(name, salary, dept). Which name in staff have salary above 70?";
export const ANSWER = "SELECT name FROM staff WHERE salary > 70;";
export const ROUTED = "auto";
export const BASE = "smollm2:base";
export const MERGE = { experts: { sql: 1.0 } };
export const SAID = "Ann is 31 years old. Who is she?";

/** The server's address, without a slash at its end. */
export function server() {
  const given = process.argv[2] ?? process.env.TTA_URL;
  if (!given) throw new Error("give the server's address as the first argument or in TTA_URL");
  return given.replace(/\/+$/, "");
}

/** Fail the step with these words, unless what it found holds. */
export function ensure(holds, says) {
  if (!holds) throw new Error(says);
}

/** The demo's `sql` expert answers the question in one way only. */
export function ensureAnswer(text) {
  const found = JSON.stringify(String(text).trim());
  ensure(found === JSON.stringify(ANSWER), `answered ${found} instead of "${ANSWER}"`);
}

/** What the server says about the merge that it used. */
export function ensureMerge(merge) {
  ensure(merge?.experts?.sql === 1, `no merge of sql came back, but ${JSON.stringify(merge)}`);
}

/** A person as the schema has it. */
export function ensurePerson(person) {
  ensure(["Ann", "Bob"].includes(person?.name), `not one of the names: ${JSON.stringify(person)}`);
  ensure(Number.isInteger(person.age), `no age: ${JSON.stringify(person)}`);
}

/** Run all steps, say how each went, and end the process: not with 0 if one failed. */
export async function run(...steps) {
  let failed = 0;
  for (const step of steps) {
    try {
      await step();
      console.log(`passed: ${step.name}`);
    } catch (error) {
      failed += 1;
      console.error(error);
      console.log(`failed: ${step.name}: ${error.name}: ${error.message.split("\n")[0]}`);
    }
  }
  process.exit(failed ? 1 : 0);
}
