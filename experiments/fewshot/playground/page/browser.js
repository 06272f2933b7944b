// Answers from the browser itself: the same program as the server's, as ONNX.

import * as ort from "./runtime/ort.wasm.min.mjs";
import {SIZE} from "./image.js";

const MOST = 5;

/** What a failed answer says to the user. */
export class Problem extends Error {}

let session;

/** What the models are, and how they want to see a drawing. */
export async function load() {
  ort.env.wasm.numThreads = 1; // more need headers that a plain server doesn't send
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  try {
    const response = await fetch("models.json");
    const models = await response.json();
    session = await ort.InferenceSession.create("model.onnx", {executionProviders: ["wasm"]});
    const blank = new Array(SIZE * SIZE).fill(0);
    await answer([blank, blank], blank); // the first takes longer
    return models;
  } catch (error) {
    console.error(error);
    throw new Problem("The models can't be loaded. Reload the page, or try another browser.");
  }
}

/**
 * The probabilities of the classes, by model: before adaptation and after each step.
 *
 * @param {number[][]} examples  an image of each class
 * @param {number[]} query  the image to recognise
 */
export async function answer(examples, query) {
  const images = new Float32Array(MOST * SIZE * SIZE);
  examples.forEach((image, index) => images.set(image, index * SIZE * SIZE));
  const found = await session.run({
    examples: new ort.Tensor("float32", images, [MOST, SIZE, SIZE]),
    count: new ort.Tensor("int32", Int32Array.of(examples.length), []),
    query: new ort.Tensor("float32", Float32Array.from(query), [SIZE, SIZE]),
  });
  return Object.fromEntries(Object.entries(found).map(([name, {data, dims}]) => [
    name,
    Array.from({length: dims[0]}, (_, row) =>
      Array.from(data.slice(row * MOST, row * MOST + examples.length))),
  ]));
}
