// How is something asked once, however many want to know it?

/** Whoever asks while somebody is being answered is given the same answer. */
export function onceAtATime<Answer>(ask: () => Promise<Answer>): () => Promise<Answer> {
  let asked: Promise<Answer> | undefined;
  return () => {
    asked ??= ask().finally(() => {
      asked = undefined;
    });
    return asked;
  };
}
