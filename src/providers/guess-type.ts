// What does a model do, by its name alone?

import type { ModelCallType } from '../generated/prisma/enums.ts';

const WORDS: readonly [ModelCallType, RegExp][] = [
  ['embedding', /embed|(^|[-/])(bge|e5|gte)-/],
  ['imageGeneration', /dall-e|image|imagen|flux|stable-diffusion|sdxl|midjourney/],
  ['audioGeneration', /tts|speech|audio|voice|whisper|transcri/],
  ['video', /sora|veo|video|kling|runway/],
  ['custom', /moderation|rerank/],
];

/** A provider's list names models and says nothing of what they do. Whoever knows better gives the model in a file. */
export function guessType(model: string): ModelCallType {
  return WORDS.find(([, words]) => words.test(model.toLowerCase()))?.[0] ?? 'chatCompletion';
}
