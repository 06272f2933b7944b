// Answers from the playground's server.

/** What a failed answer says to the user. */
export class Problem extends Error {}

async function json(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem("The playground's server doesn't answer. Start it again, then draw on.");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(content.error ?? `The server answered ${response.status}.`);
  return content;
}

/** What the models are, and how they want to see a drawing. */
export const load = () => json("api/models");

/**
 * The probabilities of the classes, by model: before adaptation and after each step.
 *
 * @param {number[][]} examples  an image of each class
 * @param {number[]} query  the image to recognise
 */
export const answer = (examples, query) =>
  json("api/answer", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({examples, query}),
  });
