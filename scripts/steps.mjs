// What is happening, and how long does it take?
import { isEnding } from './processes.mjs';

const WIDTH = 16;
const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`.padStart(7);

/** Does one step, showing that it goes on, and says in one line how long it took and what the step says of itself. */
export async function step(name, work) {
  const since = performance.now();
  const stopProgress = showProgress(name, since);
  let note = 'FAILED';
  try {
    note = await work();
  } catch (error) {
    if (isEnding()) note = 'stopped';
    throw error;
  } finally {
    stopProgress();
    console.log(`  ${name.padEnd(WIDTH)}${seconds(since)}${note ? `   ${note}` : ''}`);
  }
}

function showProgress(name, since) {
  if (process.stdout.isTTY) {
    const frames = '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏';
    let frame = 0;
    const timer = setInterval(() => {
      process.stdout.write(`\r${frames[frame++ % frames.length]} ${name.padEnd(WIDTH)}${seconds(since)}`);
    }, 100);
    return () => {
      clearInterval(timer);
      process.stdout.write('\r\x1b[K');
    };
  }
  const timer = setInterval(() => console.log(`  ${name} …${seconds(since)}`), 10_000);
  return () => clearInterval(timer);
}
